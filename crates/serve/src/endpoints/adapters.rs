//! `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`: adapters that come and go while
//! the server runs, in vLLM's shapes.

use crate::caller::Caller;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::server::Body;
use crate::state::State as Shared;
use axum::extract::State;
use axum::routing::{MethodRouter, post};
use std::sync::Arc;

pub(crate) fn route_load() -> MethodRouter<Arc<Shared>> {
    post(load)
}

pub(crate) fn route_unload() -> MethodRouter<Arc<Shared>> {
    post(unload)
}

/// Answers once the adapter can be asked for.
async fn load(State(state): State<Arc<Shared>>, Body(fields): Body) -> Result<String, ApiError> {
    let LoadRequest { name, path, in_place, pinned } = LoadRequest::read(fields)?;
    state.models.add_named(name.clone(), path, in_place, pinned).await?;
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

/// Answers at once; running requests of the adapter go on to their ends.
async fn unload(
    State(state): State<Arc<Shared>>,
    caller: Caller,
    Body(fields): Body,
) -> Result<String, ApiError> {
    let name = read_unload(fields)?;
    state.models.remove(&caller, &name)?;
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}

#[derive(Debug)]
struct LoadRequest {
    name: String,
    path: String,
    /// Replace an adapter of that name.
    in_place: bool,
    /// Never give way to another. Not one of vLLM's fields; SGLang has it.
    pinned: bool,
}

impl LoadRequest {
    fn read(mut fields: Fields) -> Result<LoadRequest, ApiError> {
        let name = fields.required("lora_name", "a name for the adapter")?;
        let path = fields.required("lora_path", "the adapter's folder")?;
        let in_place = fields.flag("load_inplace")?.unwrap_or(false);
        let pinned = fields.flag("pinned")?.unwrap_or(false);
        fields.finish()?;
        Ok(LoadRequest { name, path, in_place, pinned })
    }
}

fn read_unload(mut fields: Fields) -> Result<String, ApiError> {
    let name = fields.required("lora_name", "the name of an adapter")?;
    fields.finish()?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        let fields = |json: &str| Fields::parse(json.as_bytes()).unwrap();
        for (json, param) in [
            (r#"{"lora_path": "x"}"#, "lora_name"),
            (r#"{"lora_name": "x"}"#, "lora_path"),
            (r#"{"lora_name": 1, "lora_path": "x"}"#, "lora_name"),
            (r#"{"lora_name": "x", "lora_path": "x", "load_inplace": "yes"}"#, "load_inplace"),
            (r#"{"lora_name": "x", "lora_path": "x", "pinned": 1}"#, "pinned"),
            (r#"{"lora_name": "x", "lora_path": "x", "base_model_name": "y"}"#, "base_model_name"),
        ] {
            let error = LoadRequest::read(fields(json)).expect_err(json).json();
            assert!(error.contains(&format!(r#""param":"{param}""#)), "{json}: {error}");
        }
        let error = read_unload(fields("{}")).unwrap_err().json();
        assert!(error.contains(r#""param":"lora_name""#), "{error}");
        let error = read_unload(fields(r#"{"lora_name": "x", "lora_int_id": 3}"#)).unwrap_err();
        assert!(error.json().contains(r#""param":"lora_int_id""#));
    }
}
