//! The parameters that a run trains, adapter or whole model, as one flat vector.

use crate::error::TrainError;
use crate::optimizer::ParamGroup;
use crate::plan::{FloatDtype, Method, TrainPlan};
use model::{AdapterSet, Decoder, Grads, LoraAdapter, WeightDtype};
use std::ops::Range;
use std::path::Path;

pub(crate) struct Trainable {
    kind: Kind,
    /// Parameters before the first step, until they are known to have moved.
    initial: Vec<f32>,
}

enum Kind {
    Lora { adapter: Box<LoraAdapter>, slot: usize },
    Full { params: Vec<f32> },
}

impl Trainable {
    /// A fresh adapter, which goes into `adapters` under `name`, or the base's own parameters.
    pub(crate) fn new(
        plan: &TrainPlan,
        decoder: &Decoder,
        adapters: &mut AdapterSet,
        name: &str,
    ) -> Result<Trainable, TrainError> {
        let kind = match plan.method {
            Method::Lora => {
                let adapter = LoraAdapter::init(&plan.lora_config(), decoder, plan.seed)?;
                let slot = adapters.insert(name, &adapter, decoder)?;
                Kind::Lora { adapter: Box::new(adapter), slot }
            }
            Method::Full => Kind::Full { params: decoder.params() },
        };
        let mut trainable = Trainable { kind, initial: Vec::new() };
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

    /// Of an adapter, where each matrix lies in its parameters.
    #[cfg(test)]
    pub(crate) fn modules(&self) -> &[model::LoraModule] {
        match &self.kind {
            Kind::Lora { adapter, .. } => adapter.modules(),
            Kind::Full { .. } => &[],
        }
    }

    /// Slot that training segments name; None trains the base itself.
    pub(crate) fn slot(&self) -> Option<usize> {
        match &self.kind {
            Kind::Lora { slot, .. } => Some(*slot),
            Kind::Full { .. } => None,
        }
    }

    /// Makes room in `grads` for the gradients of what is trained.
    pub(crate) fn add_zero_grads(&self, grads: &mut Grads) {
        match &self.kind {
            Kind::Lora { adapter, slot } => {
                grads.adapters.resize(grads.adapters.len().max(slot + 1), None);
                grads.adapters[*slot] = Some(vec![0.0; adapter.param_count()]);
            }
            Kind::Full { params } => grads.full = Some(vec![0.0; params.len()]),
        }
    }

    /// The flat gradient of what is trained.
    pub(crate) fn grad_slice<'g>(&self, grads: &'g Grads) -> &'g [f32] {
        let slice = match &self.kind {
            Kind::Lora { slot, .. } => grads.adapters[*slot].as_deref(),
            Kind::Full { .. } => grads.full.as_deref(),
        };
        slice.expect("add_zero_grads made these gradients")
    }

    /// How the optimizer treats which parameters. Weight decay is for the matrices of a full model
    /// (norms are left alone) and all of an adapter; LoRA+ (arXiv 2402.12354) has B, and DoRA's
    /// magnitudes with it, learn faster than A.
    pub(crate) fn groups(&self, plan: &TrainPlan, decoder: &Decoder) -> Vec<ParamGroup> {
        let group = |range: &Range<usize>, decay, lr_ratio| ParamGroup {
            range: range.clone(),
            decay,
            lr_ratio,
        };
        match &self.kind {
            Kind::Lora { adapter, .. } if plan.loraplus_lr_ratio == 1.0 => {
                vec![group(&(0..adapter.param_count()), true, 1.0)]
            }
            Kind::Lora { adapter, .. } => {
                let each = adapter.modules().iter().flat_map(|m| {
                    [
                        group(&m.a, true, 1.0),
                        group(&(m.b.start..m.magnitude.end), true, plan.loraplus_lr_ratio),
                    ]
                });
                each.collect()
            }
            Kind::Full { .. } => {
                decoder.param_layout().iter().map(|s| group(&s.range, s.decay, 1.0)).collect()
            }
        }
    }

    /// Hands changed parameters to the forward.
    pub(crate) fn publish(
        &self,
        decoder: &mut Decoder,
        adapters: &mut AdapterSet,
    ) -> Result<(), TrainError> {
        match &self.kind {
            Kind::Lora { adapter, slot } => adapters.refresh(*slot, adapter, decoder),
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
        dtype: FloatDtype,
        metadata: &[(String, String)],
    ) -> Result<(), TrainError> {
        match &self.kind {
            Kind::Lora { adapter, .. } => {
                adapter.save(dir, base_name, base_digest, metadata)?;
                let back = LoraAdapter::load(dir, decoder)?;
                if back.params != adapter.portable(&[]).params {
                    return Err(TrainError::ReadBack(dir.to_owned()));
                }
            }
            Kind::Full { .. } => {
                let dtype = match dtype {
                    FloatDtype::Float32 => WeightDtype::F32,
                    FloatDtype::Bfloat16 => WeightDtype::Bf16,
                };
                decoder.save(dir, dtype)?;
            }
        }
        Ok(())
    }
}
