//! The parameters that a run trains, adapter or whole model, as one flat vector.

use crate::error::TrainError;
use crate::plan::{Method, SaveDtype, TrainPlan};
use model::{AdapterSet, Decoder, Grads, LoraAdapter, WeightDtype};
use std::ops::Range;
use std::path::Path;

/// Name of the adapter in training, inside this process only.
const ADAPTER_NAME: &str = "training";

pub(crate) struct Trainable {
    kind: Kind,
    adapters: AdapterSet,
    /// Parameters before the first step, until they are known to have moved.
    initial: Vec<f32>,
}

enum Kind {
    Lora { adapter: LoraAdapter, slot: usize },
    Full { params: Vec<f32> },
}

impl Trainable {
    pub(crate) fn new(plan: &TrainPlan, decoder: &Decoder) -> Result<Trainable, TrainError> {
        let mut adapters = AdapterSet::new();
        let kind = match plan.method {
            Method::Lora => {
                let adapter = LoraAdapter::init(&plan.lora_config(), decoder.config(), plan.seed)?;
                let slot = adapters.insert(ADAPTER_NAME, &adapter, decoder.config())?;
                Kind::Lora { adapter, slot }
            }
            Method::Full => Kind::Full { params: decoder.params() },
        };
        let mut trainable = Trainable { kind, adapters, initial: Vec::new() };
        trainable.initial = trainable.params().to_vec();
        Ok(trainable)
    }

    pub(crate) fn params(&self) -> &[f32] {
        match &self.kind {
            Kind::Lora { adapter, .. } => &adapter.params,
            Kind::Full { params } => params,
        }
    }

    pub(crate) fn params_mut(&mut self) -> &mut [f32] {
        match &mut self.kind {
            Kind::Lora { adapter, .. } => &mut adapter.params,
            Kind::Full { params } => params,
        }
    }

    pub(crate) fn adapters(&self) -> &AdapterSet {
        &self.adapters
    }

    /// Slot that training segments name; None trains the base itself.
    pub(crate) fn slot(&self) -> Option<usize> {
        match &self.kind {
            Kind::Lora { slot, .. } => Some(*slot),
            Kind::Full { .. } => None,
        }
    }

    pub(crate) fn zero_grads(&self) -> Grads {
        match &self.kind {
            Kind::Lora { adapter, slot } => Grads::for_adapter(*slot, adapter.param_count()),
            Kind::Full { params } => Grads::full(params.len()),
        }
    }

    /// The flat gradient of what is trained.
    pub(crate) fn grad_slice<'g>(&self, grads: &'g Grads) -> &'g [f32] {
        let slice = match &self.kind {
            Kind::Lora { slot, .. } => grads.adapters[*slot].as_deref(),
            Kind::Full { .. } => grads.full.as_deref(),
        };
        slice.expect("zero_grads made these gradients")
    }

    /// Ranges under weight decay: matrices of a full model (norms are left alone), all of an
    /// adapter.
    pub(crate) fn decayed(&self, decoder: &Decoder) -> Vec<Range<usize>> {
        match &self.kind {
            Kind::Lora { adapter, .. } => std::iter::once(0..adapter.param_count()).collect(),
            Kind::Full { .. } => {
                decoder.param_layout().iter().filter(|s| s.decay).map(|s| s.range.clone()).collect()
            }
        }
    }

    /// Hands changed parameters to the forward.
    pub(crate) fn publish(&mut self, decoder: &mut Decoder) -> Result<(), TrainError> {
        match &self.kind {
            Kind::Lora { adapter, slot } => self.adapters.refresh(*slot, adapter),
            Kind::Full { params } => decoder.set_params(params)?,
        }
        Ok(())
    }

    /// After step 1 every lora_B must have moved, after step 2 every lora_A too (its gradient is
    /// zero while B is zero); in full fine-tuning every matrix after step 2 (a norm's weights sit
    /// at 1, where a warm-up step can be smaller than f32 resolves).
    pub(crate) fn check_moved(&mut self, step: u64, decoder: &Decoder) -> Result<(), TrainError> {
        if self.initial.is_empty() {
            return Ok(());
        }
        let stuck =
            |range: &Range<usize>| self.params()[range.clone()] == self.initial[range.clone()];
        let (side, names): (_, Vec<String>) = match &self.kind {
            Kind::Lora { adapter, .. } => {
                let modules = adapter.modules();
                let still = |of: fn(&model::LoraModule) -> &Range<usize>| {
                    modules.iter().filter(|m| stuck(of(m))).map(|m| m.name.clone()).collect()
                };
                let b: Vec<String> = still(|m| &m.b);
                if b.is_empty() && step > 1 { ("lora_A", still(|m| &m.a)) } else { ("lora_B", b) }
            }
            Kind::Full { .. } if step > 1 => {
                let matrices = decoder.param_layout().iter().filter(|s| s.decay);
                let still = matrices.filter(|s| stuck(&s.range)).map(|s| s.name.clone());
                ("matrices", still.collect())
            }
            Kind::Full { .. } => ("matrices", Vec::new()),
        };
        if !names.is_empty() {
            let modules = crate::error::name_some(&names);
            return Err(TrainError::DidNotMove { step, count: names.len(), side, modules });
        }
        if step > 1 {
            self.initial = Vec::new();
        }
        Ok(())
    }

    /// Writes the adapter in PEFT's format and reads it back, or the whole model in Hugging
    /// Face's. `metadata` goes into the adapter's file and must not depend on time or place, so
    /// that equal trainings give equal bytes.
    pub(crate) fn save(
        &self,
        dir: &Path,
        decoder: &Decoder,
        base_name: &str,
        base_digest: &str,
        dtype: SaveDtype,
        metadata: &[(String, String)],
    ) -> Result<(), TrainError> {
        match &self.kind {
            Kind::Lora { adapter, .. } => {
                adapter.save(dir, base_name, base_digest, metadata)?;
                let back = LoraAdapter::load(dir, decoder)?;
                if back.params != adapter.params {
                    return Err(TrainError::ReadBack(dir.to_owned()));
                }
            }
            Kind::Full { .. } => {
                let dtype = match dtype {
                    SaveDtype::Float32 => WeightDtype::F32,
                    SaveDtype::Bfloat16 => WeightDtype::Bf16,
                };
                decoder.save(dir, dtype)?;
            }
        }
        Ok(())
    }
}
