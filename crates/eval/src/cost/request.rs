//! What a thousand requests cost, with every assumption in words.

use crate::numbers::{count, percent, significant};
use serde::{Deserialize, Serialize};

/// Where a candidate's answers come from, in money.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CostPlan {
    /// A machine paid by the hour, busy or not.
    Machine(MachinePrice),
    /// A rented model paid by the token.
    Api(ApiPrice),
}

/// A machine paid by the hour.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MachinePrice {
    /// Price of one hour, in `currency`.
    pub price_per_hour: f64,
    /// ISO 4217 code.
    pub currency: String,
    /// Where the price is from and of which date; it is printed.
    pub price_source: String,
    /// Tokens of prompts and answers together that the machine gets through in a second when busy.
    pub tokens_per_second: f64,
    /// How that was measured; it is printed.
    pub tokens_per_second_source: String,
    /// Share of the paid time in which the machine is busy, above 0 and at most 1.
    pub utilisation: f64,
}

/// A rented model paid by the token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ApiPrice {
    /// Name of the rented model.
    pub model: String,
    /// Price of a million prompt tokens, in `currency`.
    pub input_per_mtok: f64,
    /// Price of a million answer tokens, in `currency`.
    pub output_per_mtok: f64,
    /// ISO 4217 code.
    pub currency: String,
    /// Where the price is from; it is printed.
    pub source: String,
    /// Date the price was valid, year-month-day; it is printed.
    pub date: String,
}

/// The mean request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Traffic {
    /// Tokens of the prompt, template included.
    pub prompt_tokens: f64,
    /// Tokens of the answer.
    pub answer_tokens: f64,
}

/// An amount and what it rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Cost {
    /// Price of 1,000 requests, in `currency`.
    pub per_1000_requests: f64,
    /// ISO 4217 code.
    pub currency: String,
    /// Full sentences; the amount holds as far as they do.
    pub assumptions: Vec<String>,
}

/// A cost plan that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("cost: {field} is {found}; expected {expected}")]
pub struct CostError {
    /// Name of the number.
    pub field: &'static str,
    /// What was given.
    pub found: f64,
    /// What would be accepted.
    pub expected: &'static str,
}

impl CostPlan {
    /// The cost of 1,000 requests like the mean one.
    ///
    /// A machine: price per hour / (3600 · tokens per second · utilisation) per token. An API: its
    /// price per token, prompt and answer each at their own.
    ///
    /// # Errors
    /// [`CostError`] naming the number that is negative, not finite, or 0 where it divides.
    pub fn cost(&self, traffic: &Traffic) -> Result<Cost, CostError> {
        not_negative("prompt_tokens", traffic.prompt_tokens)?;
        not_negative("answer_tokens", traffic.answer_tokens)?;
        match self {
            CostPlan::Machine(machine) => machine.cost(traffic),
            CostPlan::Api(api) => api.cost(traffic),
        }
    }
}

impl MachinePrice {
    fn cost(&self, traffic: &Traffic) -> Result<Cost, CostError> {
        not_negative("price_per_hour", self.price_per_hour)?;
        positive("tokens_per_second", self.tokens_per_second)?;
        if !(self.utilisation > 0.0 && self.utilisation <= 1.0) {
            let (found, expected) = (self.utilisation, "above 0 and at most 1");
            return Err(CostError { field: "utilisation", found, expected });
        }
        let tokens_per_hour = 3600.0 * self.tokens_per_second * self.utilisation;
        let per_token = self.price_per_hour / tokens_per_hour;
        let tokens = traffic.prompt_tokens + traffic.answer_tokens;
        Ok(Cost {
            per_1000_requests: 1000.0 * tokens * per_token,
            currency: self.currency.clone(),
            assumptions: vec![
                traffic.in_words(),
                format!(
                    "The machine costs {} {} an hour ({}).",
                    significant(self.price_per_hour),
                    self.currency,
                    self.price_source
                ),
                format!(
                    "It gets through {} tokens a second, prompts and answers together ({}).",
                    significant(self.tokens_per_second),
                    self.tokens_per_second_source
                ),
                format!(
                    "It is busy {} of the time it is paid for, which makes about {} requests an hour; a machine that idles more costs more per request.",
                    percent(self.utilisation),
                    count((tokens_per_hour / tokens.max(1.0)) as usize)
                ),
                "Training, labelling, operation and electricity beyond the hourly price are not included.".to_owned(),
            ],
        })
    }
}

impl ApiPrice {
    fn cost(&self, traffic: &Traffic) -> Result<Cost, CostError> {
        not_negative("input_per_mtok", self.input_per_mtok)?;
        not_negative("output_per_mtok", self.output_per_mtok)?;
        let per_request = (traffic.prompt_tokens * self.input_per_mtok
            + traffic.answer_tokens * self.output_per_mtok)
            / 1e6;
        Ok(Cost {
            per_1000_requests: 1000.0 * per_request,
            currency: self.currency.clone(),
            assumptions: vec![
                traffic.in_words(),
                format!(
                    "{} costs {} {currency} per million prompt tokens and {} {currency} per million answer tokens ({}, {}).",
                    self.model,
                    significant(self.input_per_mtok),
                    significant(self.output_per_mtok),
                    self.source,
                    self.date,
                    currency = self.currency
                ),
                "No price for cached prompts, batches or volume is taken into account; prices of rented models change often.".to_owned(),
            ],
        })
    }
}

impl Traffic {
    fn in_words(&self) -> String {
        format!(
            "A request has {} prompt tokens and {} answer tokens, the mean of the test set.",
            significant(self.prompt_tokens),
            significant(self.answer_tokens)
        )
    }
}

pub(super) fn not_negative(field: &'static str, found: f64) -> Result<(), CostError> {
    let fine = found >= 0.0 && found.is_finite();
    if fine { Ok(()) } else { Err(CostError { field, found, expected: "a number of at least 0" }) }
}

pub(super) fn positive(field: &'static str, found: f64) -> Result<(), CostError> {
    let fine = found > 0.0 && found.is_finite();
    if fine { Ok(()) } else { Err(CostError { field, found, expected: "a number above 0" }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRAFFIC: Traffic = Traffic { prompt_tokens: 600.0, answer_tokens: 60.0 };

    fn machine() -> MachinePrice {
        MachinePrice {
            price_per_hour: 0.79,
            currency: "EUR".into(),
            price_source: "price list, 2026-08-28".into(),
            tokens_per_second: 1000.0,
            tokens_per_second_source: "measured here".into(),
            utilisation: 0.5,
        }
    }

    fn api() -> ApiPrice {
        ApiPrice {
            model: "gpt-4o-mini".into(),
            input_per_mtok: 0.15,
            output_per_mtok: 0.6,
            currency: "USD".into(),
            source: "price list".into(),
            date: "2026-08-21".into(),
        }
    }

    #[test]
    fn a_machine_costs_its_hours() {
        // 660,000 tokens at 500 tokens/s are 1,320 s; at 0.79 an hour 0.28967.
        let cost = CostPlan::Machine(machine()).cost(&TRAFFIC).unwrap();
        assert!((cost.per_1000_requests - 0.289_666_7).abs() < 1e-6, "{cost:?}");
        let words = cost.assumptions.join(" ");
        for said in ["600 prompt", "60.0 answer", "0.790 EUR", "2026-08-28", "50.0 %", "2,727"] {
            assert!(words.contains(said), "{said}: {words}");
        }
    }

    #[test]
    fn an_api_costs_its_tokens() {
        // 0.6 Mtok at 0.15 and 0.06 Mtok at 0.60.
        let cost = CostPlan::Api(api()).cost(&TRAFFIC).unwrap();
        assert!((cost.per_1000_requests - 0.126).abs() < 1e-12);
        let words = cost.assumptions.join(" ");
        assert!(words.contains("gpt-4o-mini") && words.contains("2026-08-21"), "{words}");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let refused = |plan: CostPlan, traffic: &Traffic| plan.cost(traffic).unwrap_err().field;
        let with = |change: fn(&mut MachinePrice)| {
            let mut machine = machine();
            change(&mut machine);
            CostPlan::Machine(machine)
        };
        assert_eq!(refused(with(|m| m.utilisation = 0.0), &TRAFFIC), "utilisation");
        assert_eq!(refused(with(|m| m.utilisation = 1.2), &TRAFFIC), "utilisation");
        assert_eq!(refused(with(|m| m.tokens_per_second = 0.0), &TRAFFIC), "tokens_per_second");
        assert_eq!(refused(with(|m| m.price_per_hour = f64::NAN), &TRAFFIC), "price_per_hour");
        let api = CostPlan::Api(ApiPrice { output_per_mtok: -1.0, ..api() });
        assert_eq!(refused(api.clone(), &TRAFFIC), "output_per_mtok");
        let odd = Traffic { prompt_tokens: f64::INFINITY, answer_tokens: 0.0 };
        assert_eq!(refused(api, &odd), "prompt_tokens");
    }

    #[test]
    fn plans_survive_json() {
        for plan in [CostPlan::Machine(machine()), CostPlan::Api(api())] {
            let text = serde_json::to_string(&plan).unwrap();
            assert_eq!(serde_json::from_str::<CostPlan>(&text).unwrap(), plan);
        }
    }
}
