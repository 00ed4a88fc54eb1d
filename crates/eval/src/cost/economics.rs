//! Arms side by side in money: per request, per month, and where one becomes cheaper than another.
//!
//! The formulas. A rented model: c = (uncached·p_in + cached·p_read + written·p_write + out·p_out)/10⁶,
//! the month R·c. A machine: a request keeps it busy for s = t_in/X_prefill + t_out/X_decode seconds;
//! N = max(N_min, ⌈R/hours · peak · s / (3600·u)⌉ machines, the month N·hours·price. To either come fixed
//! costs by the month F and one-off costs T, spread over L months. Break-even R* is the lowest volume
//! from which the second arm is not dearer; payback the months in which its savings pay T; e* what one
//! wrong answer must cost for the dearer, better arm to be right.
//!
//! All intervals: bootstrap over the requests of the test set (their token counts, and the scores that
//! belong to them), 95 %, percentiles, from a fixed seed. They say what other requests of this kind
//! would do, not what prices will.

use super::prices::TokenPrice;
use super::request::{CostError, not_negative, positive};
use crate::words::Language;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde::{Deserialize, Serialize};

/// Bootstrap resamples of the requests.
const RESAMPLES: usize = 2000;
/// Start of the random numbers.
const SEED: u64 = 12_345;
/// Hours of a month, as providers reckon it.
pub(crate) const HOURS_PER_MONTH: f64 = 730.0;
/// Volumes beyond this, requests a month, are as good as never.
const ENDLESS: f64 = 1e12;

/// The tokens of one request, as whoever answered counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RequestTokens {
    /// Prompt tokens in all.
    pub input: f64,
    /// Those of them that were read from a cache.
    pub cached: f64,
    /// Those of them that were written to a cache, as far as that has a price.
    pub cache_write: f64,
    /// Answer tokens, those of hidden reasoning included.
    pub output: f64,
}

/// One way to have the requests answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ArmPlan {
    /// Name of the candidate.
    pub name: String,
    /// What answers.
    pub running: Running,
    /// Costs of a month that do not depend on the volume, beside machines: operation, disks.
    #[serde(default)]
    pub fixed_per_month: f64,
    /// What was paid once: training, labelling, evaluation, work.
    #[serde(default)]
    pub one_off: Vec<OneOff>,
}

/// What answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Running {
    /// A model paid by the token: rented, or an open one whose host serves our adapter.
    PerToken {
        /// Its price.
        price: TokenPrice,
        /// Kind of service: `batch`, `flex`, `priority`; None: the ordinary one.
        service: Option<String>,
        /// Share of the prompt that the cache will hold in use; None: as counted in the test.
        cached_share: Option<f64>,
    },
    /// Machines paid by the hour.
    Machine(MachinePlan),
}

/// Machines paid by the hour, busy or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MachinePlan {
    /// Name of the machine.
    pub machine: String,
    /// Price of an hour, in `currency`.
    pub price_per_hour: f64,
    /// ISO 4217 code.
    pub currency: String,
    /// Where the price is from and of which date.
    pub price_source: String,
    /// Hours a month that each is on.
    pub hours_per_month: f64,
    /// Machines that are on whatever the volume.
    pub at_least: u32,
    /// Requests at the busiest hour over those of the mean one, at least 1.
    pub peak: f64,
    /// Share of its time that a machine may be busy at the peak, above 0 and at most 1.
    pub utilisation: f64,
    /// What it gets through.
    pub throughput: Throughput,
}

/// What a machine gets through, and which machine that was measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Throughput {
    /// Prompt tokens a second, all requests together.
    pub prefill: f64,
    /// Answer tokens a second, all requests together.
    pub decode: f64,
    /// The machine it was measured on; it must be the one that is paid for.
    pub machine: String,
    /// How it was measured.
    pub source: String,
}

/// Something paid once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct OneOff {
    /// What: `labelling 2,000 rows`.
    pub what: String,
    /// How much, in the currency of the plan.
    pub amount: f64,
}

/// What a unit of another currency is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Exchange {
    /// ISO 4217 code of the other currency.
    pub from: String,
    /// Units of the plan's currency for one of it.
    pub rate: f64,
    /// Where the rate is from and of which date.
    pub source: String,
}

/// Two arms to be set side by side: is `b` cheaper than `a`?
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PairPlan {
    /// Name of the arm compared with.
    pub a: String,
    /// Name of the arm judged.
    pub b: String,
}

/// What is reckoned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EconomicsPlan {
    /// ISO 4217 code of every amount that comes out.
    pub currency: String,
    /// Rates for other currencies.
    #[serde(default)]
    pub exchange: Vec<Exchange>,
    /// The volume; None: not stated, then nothing by the month is reckoned.
    pub requests_per_month: Option<f64>,
    /// Months over which one-off costs are spread: the time until the next adaptation.
    pub amortise_months: f64,
    /// The arms.
    pub arms: Vec<ArmPlan>,
    /// The pairs.
    pub pairs: Vec<PairPlan>,
}

/// A number with its interval. `None` stands for "without bound": a volume that is never reached, a
/// price of an error that no amount is too high for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Estimate {
    /// From all requests of the test set.
    pub value: Option<f64>,
    /// 95 % interval.
    pub ci95: [Option<f64>; 2],
}

/// From what volume on the second arm is not dearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Crossing {
    /// At any volume.
    Always,
    /// At no volume.
    Never,
    /// From the break-even volume on.
    From,
    /// Up to the break-even volume.
    UpTo,
}

/// One arm in money.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct ArmEconomics {
    /// Its name.
    pub name: String,
    /// 1,000 requests: at the volume stated, everything included; without one, the running costs
    /// alone, of a machine at its utilisation.
    pub per_1000_requests: Estimate,
    /// A month at the volume stated.
    pub per_month: Option<Estimate>,
    /// Machines at the volume stated.
    pub machines: Option<f64>,
    /// Share of their paid time that they are busy at the volume stated.
    pub utilisation: Option<f64>,
    /// Costs of a month that do not depend on the volume, one-off costs spread included.
    pub fixed_per_month: f64,
    /// One-off costs in all.
    pub one_off: f64,
    /// Cost of a month against volume: (requests, amount), for the drawing.
    pub curve: Vec<(f64, f64)>,
    /// Full sentences; the amounts hold as far as they do.
    pub assumptions: Vec<String>,
}

/// Two arms side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct PairEconomics {
    /// Name of the arm compared with.
    pub a: String,
    /// Name of the arm judged.
    pub b: String,
    /// Which way the lines cross.
    pub crossing: Crossing,
    /// Requests a month at which both cost the same; None: never.
    pub break_even: Estimate,
    /// Share of resamples of the requests in which `b` is not dearer at the volume stated.
    pub cheaper_share: Option<f64>,
    /// What `b` saves in a month at the volume stated (negative: what it costs more).
    pub saving_per_month: Option<Estimate>,
    /// Months in which the savings pay what `b` cost once more than `a`; None: never.
    pub payback_months: Option<Estimate>,
    /// Share by which the running price of `a` may fall (negative: must rise) until both cost the same
    /// at the volume stated.
    pub price_drop: Option<Estimate>,
    /// Utilisation of `b`'s machines at break-even: below it, `b` is the dearer one. None: `b` has no
    /// machines.
    pub utilisation: Option<Estimate>,
    /// What one wrong answer must cost for the dearer arm to be right, at the volume stated; None: the
    /// cheaper arm is not the worse one, so no amount is. Without a volume or scores there is none.
    pub error_cost: Option<Estimate>,
    /// Prompt tokens that `b` saves on each request against `a`.
    pub saving: Saving,
}

/// Prompt tokens that one arm needs less than another: an adapter needs no examples and no long
/// instructions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Saving {
    /// Tokens a request, mean; negative: more.
    pub prompt_tokens: f64,
    /// What they would cost on `b`'s side, per 1,000 requests.
    pub per_1000_requests: f64,
}

/// What an own machine costs by the hour: its price over its life, and its power.
///
/// # Errors
/// [`CostError`] naming the number that is negative or 0 where it divides.
pub fn own_machine_per_hour(
    price: f64,
    life_months: f64,
    watts: f64,
    price_per_kwh: f64,
) -> Result<f64, CostError> {
    not_negative("purchase_price", price)?;
    positive("life_months", life_months)?;
    not_negative("watts", watts)?;
    not_negative("price_per_kwh", price_per_kwh)?;
    Ok(price / (life_months * HOURS_PER_MONTH) + watts / 1000.0 * price_per_kwh)
}

/// Reckons arms and pairs. `tokens` has for each arm of the plan, in its order, the tokens of every
/// request of the test set, in one order for all; `scores`, where it has an arm's, its score for each.
/// Assumptions are said in `language`.
///
/// # Errors
/// [`CostError`] naming the number that makes no sense, the rate or service that is missing, or the
/// throughput that was measured on another machine.
pub fn economics(
    plan: &EconomicsPlan,
    tokens: &[Vec<RequestTokens>],
    scores: &[Option<Vec<f64>>],
    language: Language,
) -> Result<Economics, CostError> {
    positive("amortise_months", plan.amortise_months)?;
    if let Some(volume) = plan.requests_per_month {
        positive("requests_per_month", volume)?;
    }
    let arms = plan.arms.iter().zip(tokens).map(|(arm, tokens)| Arm::new(plan, arm, tokens));
    let arms = arms.collect::<Result<Vec<Arm>, _>>()?;
    let draws = Draws::new(tokens.first().map_or(0, Vec::len));
    let pairs = plan.pairs.iter().filter_map(|pair| {
        let place = |name: &str| arms.iter().position(|arm| arm.plan.name == name);
        let (a, b) = (place(&pair.a)?, place(&pair.b)?);
        let score = |arm: usize| scores.get(arm).and_then(Option::as_deref);
        Some(compare(plan, (&arms[a], score(a)), (&arms[b], score(b)), &draws))
    });
    let pairs: Vec<PairEconomics> = pairs.collect();
    let furthest = furthest(plan, &pairs);
    Ok(Economics {
        currency: plan.currency.clone(),
        exchange: plan.exchange.clone(),
        requests_per_month: plan.requests_per_month,
        amortise_months: plan.amortise_months,
        arms: arms.iter().map(|arm| arm.report(plan, &draws, furthest, language)).collect(),
        pairs,
    })
}

/// Everything in money.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Economics {
    /// ISO 4217 code of every amount.
    pub currency: String,
    /// Rates that were used.
    pub exchange: Vec<Exchange>,
    /// The volume stated.
    pub requests_per_month: Option<f64>,
    /// Months over which one-off costs are spread.
    pub amortise_months: f64,
    /// Each arm.
    pub arms: Vec<ArmEconomics>,
    /// Each pair.
    pub pairs: Vec<PairEconomics>,
}

/// The drawing's last volume: well beyond what is stated and what was found.
fn furthest(plan: &EconomicsPlan, pairs: &[PairEconomics]) -> f64 {
    let crossings = pairs.iter().filter_map(|pair| pair.break_even.value);
    let stated = plan.requests_per_month.unwrap_or(0.0);
    crossings.filter(|&r| r < 1e9).fold(stated.max(1000.0), f64::max) * 2.0
}

/// An arm with what each request takes of it: money, or seconds of a machine.
struct Arm<'a> {
    plan: &'a ArmPlan,
    /// Per request of the test set, in the plan's currency or in seconds.
    takes: Vec<f64>,
    tokens: &'a [RequestTokens],
    /// One unit of the price's currency in the plan's.
    rate: f64,
    fixed: f64,
    one_off: f64,
}

impl<'a> Arm<'a> {
    fn new(
        plan: &EconomicsPlan,
        arm: &'a ArmPlan,
        tokens: &'a [RequestTokens],
    ) -> Result<Arm<'a>, CostError> {
        not_negative("fixed_per_month", arm.fixed_per_month)?;
        for one_off in &arm.one_off {
            not_negative("one_off", one_off.amount)?;
        }
        // The sum of nothing is -0.
        let one_off = arm.one_off.iter().map(|o| o.amount).sum::<f64>() + 0.0;
        let (takes, currency) = match &arm.running {
            Running::PerToken { price, service, cached_share } => {
                let cost = |tokens: &RequestTokens| {
                    per_token(price, service.as_deref(), *cached_share, tokens)
                };
                (tokens.iter().map(cost).collect::<Result<Vec<f64>, _>>()?, &price.currency)
            }
            Running::Machine(machine) => {
                check_machine(machine)?;
                (tokens.iter().map(|t| machine.seconds(t)).collect(), &machine.currency)
            }
        };
        if takes.is_empty() {
            let expected = "token counts of its requests";
            return Err(CostError { field: "requests", found: 0.0, expected });
        }
        let rate = rate(plan, currency)?;
        let takes = match &arm.running {
            Running::PerToken { .. } => takes.into_iter().map(|money| money * rate).collect(),
            Running::Machine(_) => takes,
        };
        let fixed = arm.fixed_per_month + one_off / plan.amortise_months;
        Ok(Arm { plan: arm, takes, tokens, rate, fixed, one_off })
    }

    /// Cost lines for a mean request that takes this much.
    fn line(&self, takes: f64) -> Line {
        match &self.plan.running {
            Running::PerToken { .. } => Line { fixed: self.fixed, marginal: takes, machines: None },
            Running::Machine(m) => {
                let each = m.hours_per_month * m.price_per_hour * self.rate;
                let capacity =
                    m.hours_per_month * 3600.0 * m.utilisation / (takes.max(1e-12) * m.peak);
                let at_least = f64::from(m.at_least.max(1));
                let busy_hours = takes / (3600.0 * m.hours_per_month);
                let machines = Some(Machines { each, capacity, at_least, busy_hours });
                Line { fixed: self.fixed, marginal: 0.0, machines }
            }
        }
    }

    /// Running costs of a request without a volume: a machine at its utilisation.
    fn running(&self, takes: f64) -> f64 {
        match &self.plan.running {
            Running::PerToken { .. } => takes,
            Running::Machine(m) => takes * m.price_per_hour * self.rate / (3600.0 * m.utilisation),
        }
    }

    fn report(
        &self,
        plan: &EconomicsPlan,
        draws: &Draws,
        furthest: f64,
        language: Language,
    ) -> ArmEconomics {
        let per_1000 = |takes: f64| match plan.requests_per_month {
            Some(volume) => self.line(takes).at(volume) / volume * 1000.0,
            None => self.running(takes) * 1000.0,
        };
        let line = self.line(mean(&self.takes));
        let volumes = (0..=60).map(|i| furthest * f64::from(i) / 60.0);
        ArmEconomics {
            name: self.plan.name.clone(),
            per_1000_requests: draws.estimate(|draw| Some(per_1000(draw.mean(&self.takes)))),
            per_month: plan.requests_per_month.map(|volume| {
                draws.estimate(|draw| Some(self.line(draw.mean(&self.takes)).at(volume)))
            }),
            machines: plan.requests_per_month.and_then(|volume| line.machines_at(volume)),
            utilisation: plan.requests_per_month.and_then(|volume| line.utilisation_at(volume)),
            fixed_per_month: self.fixed,
            one_off: self.one_off,
            curve: volumes.map(|volume| (volume, line.at(volume))).collect(),
            assumptions: self.assumptions(plan, language),
        }
    }

    /// What a prompt token costs here, as its price or its share of a machine's time.
    fn per_prompt_token(&self, plan: &EconomicsPlan) -> f64 {
        match &self.plan.running {
            Running::PerToken { price, service, .. } => {
                let rates = price.rates_for(0.0, service.as_deref()).unwrap_or(price.rates);
                rates.input / 1e6 * self.rate
            }
            Running::Machine(m) => {
                let busy = match plan.requests_per_month {
                    Some(volume) => self.line(mean(&self.takes)).utilisation_at(volume),
                    None => None,
                };
                let share = busy.unwrap_or(m.utilisation).max(1e-9);
                m.price_per_hour * self.rate / (3600.0 * share * m.throughput.prefill)
            }
        }
    }

    fn assumptions(&self, plan: &EconomicsPlan, language: Language) -> Vec<String> {
        let of = |part: fn(&RequestTokens) -> f64| {
            language
                .significant(self.tokens.iter().map(part).sum::<f64>() / self.tokens.len() as f64)
        };
        let mut words = vec![language.say(
            "A request has {prompt} prompt tokens, {cached} of them cached, and {answer} answer tokens, the mean of the test set.",
            &[
                ("prompt", &of(|t| t.input)),
                ("cached", &of(|t| t.cached)),
                ("answer", &of(|t| t.output)),
            ],
        )];
        match &self.plan.running {
            Running::PerToken { price, service, cached_share } => {
                words.extend(token_words(language, price, service.as_deref(), *cached_share));
            }
            Running::Machine(machine) => words.extend(machine_words(language, machine)),
        }
        if let Some(used) = plan.exchange.iter().find(|e| e.rate == self.rate && self.rate != 1.0) {
            words.push(language.say(
                "1 {from} is {rate} {to} ({source}).",
                &[
                    ("from", &used.from),
                    ("rate", &language.significant(used.rate)),
                    ("to", &plan.currency),
                    ("source", &used.source),
                ],
            ));
        }
        for one_off in &self.plan.one_off {
            words.push(language.say(
                "Paid once: {what}, {amount}, spread over {months} months.",
                &[
                    ("what", &one_off.what),
                    ("amount", &language.money(one_off.amount, &plan.currency)),
                    ("months", &language.significant(plan.amortise_months)),
                ],
            ));
        }
        if self.plan.one_off.is_empty() {
            words.push(
                language.t("No cost of training, labelling or set-up was stated.").to_owned(),
            );
        }
        words.push(match self.plan.fixed_per_month {
            0.0 => language.t("No cost of operation was stated.").to_owned(),
            fixed => language.say(
                "Operation costs {amount} a month.",
                &[("amount", &language.money(fixed, &plan.currency))],
            ),
        });
        words
    }
}

fn token_words(
    language: Language,
    price: &TokenPrice,
    service: Option<&str>,
    cached_share: Option<f64>,
) -> Vec<String> {
    let rates = price.rates_for(0.0, service).unwrap_or(price.rates);
    let amount = |rate: f64| language.money(rate, &price.currency);
    let cached = match rates.cached {
        Some(cached) => {
            language.say(", {amount} when read from the cache", &[("amount", &amount(cached))])
        }
        None => String::new(),
    };
    let service_words = match service {
        Some(service) => language.say(" with the service {name}", &[("name", &service)]),
        None => String::new(),
    };
    let mut words = vec![language.say(
        "{name} costs {input} per million prompt tokens{cached} and {output} per million answer tokens{service} ({source}, read {day}).",
        &[
            ("name", &price.name()),
            ("input", &amount(rates.input)),
            ("cached", &cached),
            ("output", &amount(rates.output)),
            ("service", &service_words),
            ("source", &price.source),
            ("day", &price.read),
        ],
    )];
    if let Some(share) = cached_share {
        words.push(language.say(
            "In use, {share} of the prompt is read from the cache.",
            &[("share", &language.percent(share))],
        ));
    }
    if let Some(tier) = price.tiers.first().filter(|_| service.is_none()) {
        words.push(
            language.say(
                "Prompts above {n} tokens cost more; that is reckoned.",
                &[("n", &tier.above)],
            ),
        );
    }
    if price.serves_lora {
        words.push(language.t("The host serves an adapter of one's own at this price.").to_owned());
    }
    words
}

fn machine_words(language: Language, machine: &MachinePlan) -> Vec<String> {
    let number = |value: f64| language.significant(value);
    let always_on = match machine.at_least {
        0 | 1 => language.t("At least one is always on.").to_owned(),
        n => language.say("At least {n} are always on.", &[("n", &n)]),
    };
    vec![
        language.say(
            "{name} costs {amount} an hour ({source}) and is on for {hours} hours a month.",
            &[
                ("name", &machine.machine),
                ("amount", &language.money(machine.price_per_hour, &machine.currency)),
                ("source", &machine.price_source),
                ("hours", &number(machine.hours_per_month)),
            ],
        ),
        language.say(
            "It reads {prefill} prompt tokens and writes {decode} answer tokens a second ({source}, measured on {machine}).",
            &[
                ("prefill", &number(machine.throughput.prefill)),
                ("decode", &number(machine.throughput.decode)),
                ("source", &machine.throughput.source),
                ("machine", &machine.throughput.machine),
            ],
        ),
        language.say(
            "At the busiest hour, {peak} times the mean, it is busy for at most {share} of the time; then another is added. {always_on}",
            &[
                ("peak", &number(machine.peak)),
                ("share", &language.percent(machine.utilisation)),
                ("always_on", &always_on),
            ],
        ),
    ]
}

impl MachinePlan {
    fn seconds(&self, tokens: &RequestTokens) -> f64 {
        tokens.input / self.throughput.prefill + tokens.output / self.throughput.decode
    }
}

fn check_machine(machine: &MachinePlan) -> Result<(), CostError> {
    not_negative("price_per_hour", machine.price_per_hour)?;
    positive("prefill", machine.throughput.prefill)?;
    positive("decode", machine.throughput.decode)?;
    if !(machine.hours_per_month > 0.0 && machine.hours_per_month <= 744.0) {
        let expected = "above 0 and at most 744";
        return Err(CostError {
            field: "hours_per_month",
            found: machine.hours_per_month,
            expected,
        });
    }
    if !(machine.peak >= 1.0 && machine.peak.is_finite()) {
        return Err(CostError { field: "peak", found: machine.peak, expected: "at least 1" });
    }
    if !(machine.utilisation > 0.0 && machine.utilisation <= 1.0) {
        let (found, expected) = (machine.utilisation, "above 0 and at most 1");
        return Err(CostError { field: "utilisation", found, expected });
    }
    if machine.machine != machine.throughput.machine {
        return Err(CostError {
            field: "tokens_per_second",
            found: machine.throughput.decode,
            expected: "a measurement on the machine that is paid for, not on another one",
        });
    }
    Ok(())
}

fn rate(plan: &EconomicsPlan, currency: &str) -> Result<f64, CostError> {
    if currency == plan.currency {
        return Ok(1.0);
    }
    let expected = "a rate for the currency of every price: exchange = { USD = 0.92 }";
    let missing = CostError { field: "exchange", found: f64::NAN, expected };
    let rate = plan.exchange.iter().find(|e| e.from == currency).ok_or(missing)?.rate;
    positive("exchange", rate)?;
    Ok(rate)
}

fn per_token(
    price: &TokenPrice,
    service: Option<&str>,
    cached_share: Option<f64>,
    tokens: &RequestTokens,
) -> Result<f64, CostError> {
    for (field, count) in [("prompt_tokens", tokens.input), ("answer_tokens", tokens.output)] {
        not_negative(field, count)?;
    }
    if let Some(share) = cached_share
        && !(0.0..=1.0).contains(&share)
    {
        return Err(CostError { field: "cached_share", found: share, expected: "between 0 and 1" });
    }
    let rates = price.rates_for(tokens.input, service).map_err(|_| CostError {
        field: "service",
        found: f64::NAN,
        expected: "a service that the price table knows for this model",
    })?;
    let cached = cached_share.map_or(tokens.cached, |share| share * tokens.input).min(tokens.input);
    let written = tokens.cache_write.min(tokens.input - cached);
    let plain = tokens.input - cached - written;
    let (read, write) =
        (rates.cached.unwrap_or(rates.input), rates.cache_write.unwrap_or(rates.input));
    Ok((plain * rates.input + cached * read + written * write + tokens.output * rates.output) / 1e6)
}

/// Cost of a month against volume.
#[derive(Clone, Copy)]
struct Line {
    fixed: f64,
    marginal: f64,
    machines: Option<Machines>,
}

#[derive(Clone, Copy)]
struct Machines {
    /// A month of one.
    each: f64,
    /// Requests a month that one can take.
    capacity: f64,
    at_least: f64,
    /// Share of one machine's month that one request takes.
    busy_hours: f64,
}

impl Line {
    fn at(&self, volume: f64) -> f64 {
        let machines = self.machines_at(volume).unwrap_or(0.0);
        let each = self.machines.map_or(0.0, |m| m.each);
        self.fixed + volume * self.marginal + machines * each
    }

    fn machines_at(&self, volume: f64) -> Option<f64> {
        // A volume of exactly n machines' capacity takes n of them, whatever the last digit says.
        self.machines.map(|m| (volume / m.capacity - 1e-9).ceil().max(m.at_least))
    }

    fn utilisation_at(&self, volume: f64) -> Option<f64> {
        self.machines.map(|m| volume * m.busy_hours / self.machines_at(volume).unwrap_or(1.0))
    }

    /// Where this line comes to lie at or below `other`, and which way.
    fn crossing(&self, other: &Line) -> (Crossing, f64) {
        if let (Some(m), None) = (self.machines, other.machines) {
            return self.machines_below(m, other);
        }
        let cheaper = |volume: f64| self.at(volume) <= other.at(volume);
        match (cheaper(1.0), cheaper(ENDLESS)) {
            (true, true) => (Crossing::Always, 0.0),
            (false, false) => (Crossing::Never, f64::INFINITY),
            (at_first, _) => {
                let (mut lo, mut hi) = (1.0f64, ENDLESS);
                for _ in 0..200 {
                    let middle = (lo * hi).sqrt();
                    if cheaper(middle) == at_first { lo = middle } else { hi = middle }
                }
                let crossing = if at_first { Crossing::UpTo } else { Crossing::From };
                (crossing, if at_first { lo } else { hi })
            }
        }
    }

    /// The first volume at which n machines are not dearer than a price per request, and can take it.
    fn machines_below(&self, m: Machines, other: &Line) -> (Crossing, f64) {
        let fixed = self.fixed - other.fixed;
        let gain = other.marginal - self.marginal;
        if fixed + m.at_least * m.each <= 0.0 {
            return (Crossing::Always, 0.0);
        }
        // What a full machine saves beyond its own price.
        let beyond = gain * m.capacity - m.each;
        let least = m.at_least;
        let first = (fixed + least * m.each) / gain;
        if gain > 0.0 && first <= least * m.capacity {
            return (Crossing::From, first);
        }
        if beyond <= 0.0 {
            return (Crossing::Never, f64::INFINITY);
        }
        let n = (fixed / beyond - 1e-9).ceil().max(least);
        (Crossing::From, (fixed + n * m.each) / gain)
    }
}

fn compare(
    plan: &EconomicsPlan,
    (a, score_a): (&Arm, Option<&[f64]>),
    (b, score_b): (&Arm, Option<&[f64]>),
    draws: &Draws,
) -> PairEconomics {
    let lines = |draw: &Draw| (a.line(draw.mean(&a.takes)), b.line(draw.mean(&b.takes)));
    let all = draws.all();
    let (line_a, line_b) = lines(&all);
    let crossing = line_b.crossing(&line_a).0;
    let at_volume = |estimate: &dyn Fn(&Draw, f64) -> Option<f64>| {
        plan.requests_per_month.map(|volume| draws.estimate(|draw| estimate(draw, volume)))
    };
    let saving = |draw: &Draw, volume: f64| {
        let (line_a, line_b) = lines(draw);
        line_a.at(volume) - line_b.at(volume)
    };
    let tokens = |arm: &Arm| mean_of(arm.tokens.iter().map(|t| t.input));
    let prompt_tokens = tokens(a) - tokens(b);
    PairEconomics {
        a: a.plan.name.clone(),
        b: b.plan.name.clone(),
        crossing,
        break_even: draws.estimate(|draw| {
            let (line_a, line_b) = lines(draw);
            finite(line_b.crossing(&line_a).1)
        }),
        cheaper_share: plan.requests_per_month.map(|v| draws.share(|draw| saving(draw, v) >= 0.0)),
        saving_per_month: at_volume(&|draw, volume| Some(saving(draw, volume))),
        payback_months: at_volume(&|draw, volume| {
            // Without what is paid once, which is what is to be paid back.
            let spread = (b.one_off - a.one_off) / plan.amortise_months;
            let monthly = saving(draw, volume) + spread;
            let extra = b.one_off - a.one_off;
            match (extra <= 0.0, monthly > 0.0) {
                (true, _) => Some(0.0),
                (false, true) => Some(extra / monthly),
                (false, false) => None,
            }
        }),
        price_drop: at_volume(&|draw, volume| {
            let (line_a, _) = lines(draw);
            let running = line_a.at(volume) - line_a.fixed;
            (running > 0.0).then(|| saving(draw, volume) / running)
        }),
        utilisation: line_b.machines.map(|_| {
            draws.estimate(|draw| {
                let (line_a, line_b) = lines(draw);
                let (_, volume) = line_b.crossing(&line_a);
                finite(volume).and_then(|volume| line_b.utilisation_at(volume))
            })
        }),
        error_cost: score_a.zip(score_b).and_then(|(score_a, score_b)| {
            at_volume(&|draw, volume| {
                let gained = draw.mean(score_b) - draw.mean(score_a);
                // What the dearer arm costs more over what it has more right.
                let dearer = -saving(draw, volume);
                let cost = dearer / (volume * gained);
                (gained != 0.0 && cost >= 0.0).then_some(cost)
            })
        }),
        saving: Saving {
            prompt_tokens,
            per_1000_requests: 1000.0 * prompt_tokens * b.per_prompt_token(plan),
        },
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn mean(values: &[f64]) -> f64 {
    mean_of(values.iter().copied())
}

fn mean_of(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len().max(1) as f64;
    values.sum::<f64>() / n
}

/// Which requests a resample holds.
struct Draw {
    places: Vec<u32>,
}

impl Draw {
    fn mean(&self, values: &[f64]) -> f64 {
        mean_of(self.places.iter().map(|&place| values[place as usize]))
    }
}

/// The resamples, the same for every number, so that numbers of one resample belong together.
struct Draws {
    n: usize,
    draws: Vec<Draw>,
}

impl Draws {
    fn new(n: usize) -> Draws {
        let mut rng = Pcg64Mcg::seed_from_u64(SEED);
        let draw = |_| Draw { places: (0..n).map(|_| rng.random_range(0..n) as u32).collect() };
        Draws { n, draws: (0..RESAMPLES).map(draw).collect() }
    }

    fn all(&self) -> Draw {
        Draw { places: (0..self.n as u32).collect() }
    }

    fn estimate(&self, value: impl Fn(&Draw) -> Option<f64>) -> Estimate {
        let mut values: Vec<f64> =
            self.draws.iter().map(|draw| value(draw).unwrap_or(f64::INFINITY)).collect();
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (share * (values.len() - 1) as f64).round() as usize;
            finite(values[place])
        };
        Estimate { value: value(&self.all()), ci95: [at(0.025), at(0.975)] }
    }

    fn share(&self, holds: impl Fn(&Draw) -> bool) -> f64 {
        self.draws.iter().filter(|draw| holds(draw)).count() as f64 / self.draws.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::PriceTable;
    use super::*;

    const DAY: &str = "2026-08-21";

    fn request(input: f64, output: f64) -> RequestTokens {
        RequestTokens { input, output, ..RequestTokens::default() }
    }

    fn rented(model: &str, day: &str) -> ArmPlan {
        let table = PriceTable::shipped().unwrap();
        let price = table.model(model, day).unwrap().clone();
        let running = Running::PerToken { price, service: None, cached_share: None };
        ArmPlan { name: model.into(), running, fixed_per_month: 0.0, one_off: Vec::new() }
    }

    /// An always-on card at this price a month; it can take anything unless told otherwise.
    fn card(per_month: f64, tokens_per_second: f64) -> ArmPlan {
        let machine = MachinePlan {
            machine: "card".into(),
            price_per_hour: per_month / HOURS_PER_MONTH,
            currency: "EUR".into(),
            price_source: "test, 2026-08-30".into(),
            hours_per_month: HOURS_PER_MONTH,
            at_least: 1,
            peak: 1.0,
            utilisation: 1.0,
            throughput: Throughput {
                prefill: tokens_per_second,
                decode: tokens_per_second,
                machine: "card".into(),
                source: "test".into(),
            },
        };
        let running = Running::Machine(machine);
        ArmPlan { name: "ours".into(), running, fixed_per_month: 0.0, one_off: Vec::new() }
    }

    fn plan(arms: Vec<ArmPlan>, volume: Option<f64>) -> EconomicsPlan {
        let pair = PairPlan { a: arms[0].name.clone(), b: arms[1].name.clone() };
        let usd = Exchange { from: "USD".into(), rate: 0.92, source: "assumed".into() };
        EconomicsPlan {
            currency: "EUR".into(),
            exchange: vec![usd],
            requests_per_month: volume,
            amortise_months: 12.0,
            arms,
            pairs: vec![pair],
        }
    }

    fn reckon(plan: &EconomicsPlan, tokens: &[RequestTokens]) -> Economics {
        economics(plan, &[tokens.to_vec(), tokens.to_vec()], &[None, None], Language::En).unwrap()
    }

    /// 600 tokens in, 60 out, one USD at 0.92 EUR, one always-on card: EUR per 1,000 requests and
    /// break-even volume against an L4 at 577 EUR a month and an L40S at 1,073.
    #[test]
    fn the_worked_example() {
        for (model, day, per_1000, l4, l40s) in [
            ("openai/gpt-4o", DAY, 1.93, 0.30e6, 0.56e6),
            ("openai/gpt-5.6-sol", DAY, 4.42, 0.13e6, 0.24e6),
            ("anthropic/claude-sonnet-5", "2026-09-01", 2.48, 0.23e6, 0.43e6),
            ("anthropic/claude-haiku-4-5", DAY, 0.83, 0.70e6, 1.3e6),
            ("openai/gpt-4.1-mini", DAY, 0.31, 1.9e6, 3.5e6),
            ("google/gemini-2.5-flash", DAY, 0.30, 1.9e6, 3.5e6),
            ("openai/gpt-5-mini", DAY, 0.25, 2.3e6, 4.3e6),
            ("openai/gpt-5.6-luna", DAY, 0.18, 3.3e6, 6.1e6),
            ("openai/gpt-4o-mini", DAY, 0.116, 5.0e6, 9.3e6),
        ] {
            let tokens = [request(600.0, 60.0); 3];
            for (month, expected) in [(577.0, l4), (1073.0, l40s)] {
                let found =
                    reckon(&plan(vec![rented(model, day), card(month, 1e9)], None), &tokens);
                let price = found.arms[0].per_1000_requests.value.unwrap();
                assert!((price / per_1000 - 1.0).abs() < 0.03, "{model}: {price}");
                let volume = found.pairs[0].break_even.value.unwrap();
                assert!((volume / expected - 1.0).abs() < 0.03, "{model}: {volume}");
                assert_eq!(found.pairs[0].crossing, Crossing::From);
            }
        }
    }

    #[test]
    fn a_card_that_cannot_take_the_volume_is_more_cards_or_never_cheaper() {
        let tokens = [request(600.0, 60.0); 3];
        let against = |speed: f64| {
            reckon(
                &plan(vec![rented("openai/gpt-4o-mini", DAY), card(577.0, speed)], None),
                &tokens,
            )
        };
        // 4.976 million requests of 660 tokens in 730 hours are 1,250 tokens a second.
        let enough = against(1300.0).pairs.remove(0);
        assert!((enough.break_even.value.unwrap() - 577.0 / 0.000_115_92).abs() < 1.0);
        let busy = enough.utilisation.unwrap().value.unwrap();
        assert!((busy - 577.0 / 0.000_115_92 * 660.0 / (1300.0 * 3600.0 * 730.0)).abs() < 1e-9);
        let too_slow = against(1200.0).pairs.remove(0);
        assert_eq!((too_slow.crossing, too_slow.break_even.value), (Crossing::Never, None));
        // With 500 a month beside, one card is not enough and the second one pays.
        let mut arms = vec![rented("openai/gpt-4o-mini", DAY), card(577.0, 2600.0)];
        arms[1].fixed_per_month = 700.0;
        let two = reckon(&plan(arms, None), &tokens).pairs.remove(0);
        let volume = two.break_even.value.unwrap();
        assert!((volume - (700.0 + 2.0 * 577.0) / 0.000_115_92).abs() < 1.0, "{volume}");
    }

    #[test]
    fn a_month_counts_machines_peaks_and_what_was_paid_once() {
        let mut ours = card(730.0, 1000.0);
        if let Running::Machine(m) = &mut ours.running {
            (m.peak, m.utilisation) = (2.0, 0.5);
        }
        ours.one_off = vec![OneOff { what: "labelling".into(), amount: 1200.0 }];
        ours.fixed_per_month = 50.0;
        let arms = vec![rented("openai/gpt-4o", DAY), ours];
        // 0.66 s a request; a machine takes 730 · 3600 · 0.5 / (0.66 · 2) = 995,454 requests.
        let found = reckon(&plan(arms, Some(1_500_000.0)), &[request(600.0, 60.0); 4]);
        let own = &found.arms[1];
        assert_eq!(own.machines, Some(2.0));
        assert!(
            (own.per_month.unwrap().value.unwrap() - (2.0 * 730.0 + 50.0 + 100.0)).abs() < 1e-6
        );
        assert!((own.utilisation.unwrap() - 1.5e6 * 0.66 / (2.0 * 730.0 * 3600.0)).abs() < 1e-9);
        let pair = &found.pairs[0];
        let api = 1.5e6 * 0.0021 * 0.92;
        assert!((pair.saving_per_month.unwrap().value.unwrap() - (api - 1610.0)).abs() < 1e-6);
        assert!((pair.price_drop.unwrap().value.unwrap() - (1.0 - 1610.0 / api)).abs() < 1e-9);
        // 1,200 paid once over what a month saves without it.
        let months = pair.payback_months.unwrap().value.unwrap();
        assert!((months - 1200.0 / (api - 1510.0)).abs() < 1e-9);
        assert_eq!(pair.cheaper_share, Some(1.0));
        let words = own.assumptions.join(" ");
        for said in ["labelling, 1,200 EUR, spread over 12.0 months", "50.0 EUR a month", "on card"]
        {
            assert!(words.contains(said), "{said}: {words}");
        }
        assert!(found.arms[0].assumptions.join(" ").contains("1 USD is 0.920 EUR (assumed)"));
    }

    #[test]
    fn caches_batches_and_tiers_have_their_prices() {
        let cost = |arm: ArmPlan, tokens: RequestTokens| {
            let found = reckon(&plan(vec![arm, card(1.0, 1.0)], None), &[tokens; 2]);
            found.arms[0].per_1000_requests.value.unwrap() / 0.92
        };
        let half = RequestTokens { cached: 300.0, ..request(600.0, 60.0) };
        // 0.3 · 2.5 + 0.3 · 1.25 + 0.06 · 10
        assert!((cost(rented("openai/gpt-4o", DAY), half) - 1.725).abs() < 1e-9);
        let with = |change: fn(&mut Option<String>, &mut Option<f64>)| {
            let mut arm = rented("openai/gpt-4o", DAY);
            if let Running::PerToken { service, cached_share, .. } = &mut arm.running {
                change(service, cached_share);
            }
            arm
        };
        let plain = request(600.0, 60.0);
        assert!((cost(with(|_, share| *share = Some(0.5)), plain) - 1.725).abs() < 1e-9);
        assert!((cost(with(|s, _| *s = Some("batch".into())), plain) - 1.05).abs() < 1e-9);
        // A long prompt costs more as a whole: 300,000 · 6 + 1,000 · 22.5 against 3 and 15.
        let long = cost(rented("anthropic/claude-sonnet-4-5", DAY), request(300_000.0, 1000.0));
        assert!((long - 1822.5).abs() < 1e-6, "{long}");
        let written = RequestTokens { cache_write: 600.0, ..request(600.0, 0.0) };
        assert!((cost(rented("anthropic/claude-haiku-4-5", DAY), written) - 0.75).abs() < 1e-9);
    }

    #[test]
    fn intervals_hold_the_value_and_widen_with_the_spread() {
        let tokens: Vec<_> = (0..40).map(|i| request(200.0 + 20.0 * f64::from(i), 60.0)).collect();
        let arms = vec![rented("openai/gpt-4o", DAY), card(577.0, 1e6)];
        let found = reckon(&plan(arms, Some(500_000.0)), &tokens);
        let pair = &found.pairs[0];
        for estimate in [
            pair.break_even,
            pair.saving_per_month.unwrap(),
            pair.price_drop.unwrap(),
            pair.utilisation.unwrap(),
            found.arms[0].per_1000_requests,
        ] {
            let ([Some(lo), Some(hi)], Some(value)) = (estimate.ci95, estimate.value) else {
                panic!("{estimate:?}")
            };
            assert!(lo < value && value < hi, "{estimate:?}");
        }
    }

    #[test]
    fn a_wrong_answer_has_a_price_only_where_the_dearer_arm_is_the_better_one() {
        let arms = vec![rented("openai/gpt-4o", DAY), card(577.0, 1e6)];
        let plan = plan(arms, Some(1_000_000.0));
        let tokens = vec![vec![request(600.0, 60.0); 100]; 2];
        let score =
            |right: usize| Some((0..100).map(|i| f64::from(i < right)).collect::<Vec<f64>>());
        let cost = |a: usize, b: usize| {
            economics(&plan, &tokens, &[score(a), score(b)], Language::En).unwrap().pairs[0]
                .error_cost
                .unwrap()
        };
        // The rented arm costs 1,355 more a month and has 50,000 more right.
        let found = cost(95, 90);
        assert!((found.value.unwrap() - (1932.0 - 577.0) / 50_000.0).abs() < 1e-9, "{found:?}");
        assert_eq!(cost(90, 95).value, None, "ours is cheaper and better");
        let none = economics(&plan, &tokens, &[None, score(1)], Language::En).unwrap();
        assert_eq!(none.pairs[0].error_cost, None);
    }

    #[test]
    fn an_adapter_saves_the_tokens_of_examples_and_instructions() {
        let mut prompted = card(577.0, 1000.0);
        prompted.name = "prompted".into();
        let plan = plan(vec![prompted, card(577.0, 1000.0)], Some(100_000.0));
        let tokens = [vec![request(1600.0, 60.0); 3], vec![request(600.0, 60.0); 3]];
        let found = economics(&plan, &tokens, &[None, None], Language::En).unwrap();
        let saving = found.pairs[0].saving;
        assert_eq!(saving.prompt_tokens, 1000.0);
        // One machine either way: 1,000 requests take 577/100 EUR for 660 tokens each.
        assert!((saving.per_1000_requests - 577.0 / 100.0 * 1000.0 / 660.0).abs() < 1e-9);
        assert_eq!(found.pairs[0].crossing, Crossing::Always);
    }

    #[test]
    fn own_machines_cost_their_price_and_their_power() {
        // 3,504 over 48 months of 730 hours is 0.1 an hour, 300 W at 0.25 are 0.075.
        let hour = own_machine_per_hour(3504.0, 48.0, 300.0, 0.25).unwrap();
        assert!((hour - 0.175).abs() < 1e-12);
        assert!(own_machine_per_hour(1.0, 0.0, 0.0, 0.0).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let tokens = [request(600.0, 60.0); 2];
        let refused = |change: &dyn Fn(&mut EconomicsPlan)| {
            let mut plan = plan(vec![rented("openai/gpt-4o", DAY), card(577.0, 1.0)], Some(1.0));
            change(&mut plan);
            economics(&plan, &[tokens.to_vec(), tokens.to_vec()], &[], Language::En)
                .unwrap_err()
                .to_string()
        };
        let machine = |change: fn(&mut MachinePlan)| {
            move |plan: &mut EconomicsPlan| {
                if let Running::Machine(m) = &mut plan.arms[1].running {
                    change(m);
                }
            }
        };
        for (said, found) in [
            ("exchange", refused(&|p| p.exchange.clear())),
            ("amortise_months", refused(&|p| p.amortise_months = 0.0)),
            ("requests_per_month", refused(&|p| p.requests_per_month = Some(f64::NAN))),
            ("another one", refused(&machine(|m| m.throughput.machine = "laptop".into()))),
            ("utilisation", refused(&machine(|m| m.utilisation = 1.5))),
            ("peak", refused(&machine(|m| m.peak = 0.5))),
            ("hours_per_month", refused(&machine(|m| m.hours_per_month = 800.0))),
            (
                "one_off",
                refused(&|p| p.arms[0].one_off.push(OneOff { what: "x".into(), amount: -1.0 })),
            ),
        ] {
            assert!(found.contains(said), "{said}: {found}");
        }
        let plan = plan(vec![rented("openai/gpt-4o", DAY), card(577.0, 1.0)], None);
        assert!(economics(&plan, &[Vec::new(), Vec::new()], &[], Language::En).is_err());
    }
}
