//! Dated prices: a small table of our own, and the two formats in which larger ones are kept.
//!
//! Our form is JSON lines, one price each, with its source and the date it was read. The others are
//! genai-prices' `data.json` (a list of providers; prices with dates and tiers) and LiteLLM's
//! `model_prices_and_context_window.json` (one object; no dates). All amounts are per million tokens or
//! per hour, in the currency that the line names.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The table that comes with the program.
const SHIPPED: &str = include_str!("../../data/prices.jsonl");

/// What a table of prices refuses.
#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    /// The file cannot be read.
    #[error("{path}: cannot read the price table: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no price table, or a price in it makes no sense.
    #[error("{path}: {place}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, or provider and model.
        place: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// No price has this name.
    #[error("no price is known for {found:?} on {date}{hint}")]
    Unknown {
        /// The name given.
        found: String,
        /// The date asked for.
        date: String,
        /// `\nhint: ...`
        hint: String,
    },
    /// Several providers sell a model of this name.
    #[error("{found:?} is sold by several: {known}\nhint: name one of them")]
    Ambiguous {
        /// The name given.
        found: String,
        /// Their full names.
        known: String,
    },
}

/// Prices of a million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Prompt tokens.
    pub input: f64,
    /// Prompt tokens read from the provider's cache; None: they cost what others cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<f64>,
    /// Prompt tokens written to the provider's cache; None: they cost what others cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write: Option<f64>,
    /// Answer tokens, those of hidden reasoning included.
    pub output: f64,
}

/// Prices that hold for the whole request when its prompt is longer than a bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tier {
    /// Prompt tokens that must be exceeded.
    pub above: u64,
    /// The prices from there on.
    pub rates: Rates,
}

/// What a rented model costs, from a day on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenPrice {
    /// Who sells it.
    pub provider: String,
    /// The model's name there.
    pub model: String,
    /// First day of the price, year-month-day; None: since ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Last day of the price; None: not known to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// ISO 4217 code.
    pub currency: String,
    /// The prices.
    pub rates: Rates,
    /// Higher prices for long prompts, by rising bound.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
    /// Other prices by kind of service: `batch`, `flex`, `priority`.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub services: IndexMap<String, Rates>,
    /// Whether an adapter of one's own is served at this price (LoRA at the base's price).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub serves_lora: bool,
    /// Where the price was read.
    pub source: String,
    /// When it was read, year-month-day.
    pub read: String,
}

/// What a machine costs by the hour, from a day on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MachineHour {
    /// Who rents it out.
    pub provider: String,
    /// Its name there.
    pub machine: String,
    /// First day of the price, year-month-day; None: since ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Last day of the price; None: not known to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// ISO 4217 code.
    pub currency: String,
    /// Price of one hour.
    pub per_hour: f64,
    /// Where the price was read.
    pub source: String,
    /// When it was read, year-month-day.
    pub read: String,
}

#[derive(Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Line {
    Tokens(TokenPrice),
    Hour(MachineHour),
}

/// Prices of rented models and machines.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PriceTable {
    /// Rented models.
    pub tokens: Vec<TokenPrice>,
    /// Rented machines.
    pub machines: Vec<MachineHour>,
}

impl PriceTable {
    /// The table that comes with the program.
    ///
    /// # Errors
    /// [`PriceError::Malformed`], which the tests exclude.
    pub fn shipped() -> Result<PriceTable, PriceError> {
        parse(SHIPPED, Path::new("prices.jsonl"), "")
    }

    /// Reads a table in any of the three forms. `read_on` is the day that the file is from
    /// (year-month-day); it stands in for the reading date, which the other two forms do not carry.
    ///
    /// # Errors
    /// [`PriceError::Io`]; [`PriceError::Malformed`] naming line or model.
    pub fn read(path: &Path, read_on: &str) -> Result<PriceTable, PriceError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| PriceError::Io { path: path.to_owned(), source })?;
        PriceTable::parse(&text, path, read_on)
    }

    /// [`PriceTable::read`] of a text that is there already; `path` is named in errors.
    ///
    /// # Errors
    /// [`PriceError::Malformed`] naming line or model.
    pub fn parse(text: &str, path: &Path, read_on: &str) -> Result<PriceTable, PriceError> {
        parse(text, path, read_on)
    }

    /// What holds on a day (year-month-day): of several lines for one name the latest that has begun.
    #[must_use]
    pub fn on(&self, date: &str) -> PriceTable {
        let tokens = self.tokens.iter();
        let tokens = tokens.map(|p| ((&p.provider, &p.model), (&p.from, &p.until), p));
        let machines = self.machines.iter();
        let machines = machines.map(|p| ((&p.provider, &p.machine), (&p.from, &p.until), p));
        PriceTable { tokens: in_force(tokens, date), machines: in_force(machines, date) }
    }

    /// The table as JSON lines, which [`PriceTable::read`] reads back.
    pub fn to_jsonl(&self) -> String {
        let tokens = self.tokens.iter().cloned().map(Line::Tokens);
        let machines = self.machines.iter().cloned().map(Line::Hour);
        // Strings and finite numbers: nothing here can fail to serialise.
        let line = |line: Line| serde_json::to_string(&line).unwrap_or_default() + "\n";
        tokens.chain(machines).map(line).collect()
    }

    /// Puts the prices of `newer` in front: where both know a model, `newer` counts.
    pub fn updated(mut self, newer: PriceTable) -> PriceTable {
        let PriceTable { tokens, machines } = newer;
        self.tokens.retain(|old| {
            !tokens.iter().any(|new| (&new.provider, &new.model) == (&old.provider, &old.model))
        });
        self.machines.retain(|old| {
            !machines
                .iter()
                .any(|new| (&new.provider, &new.machine) == (&old.provider, &old.machine))
        });
        self.tokens.extend(tokens);
        self.machines.extend(machines);
        self
    }

    /// The price of a rented model on a day (year-month-day): `provider/model`, or the model's name
    /// where one provider has it. Of several lines for one model the latest that has begun counts.
    ///
    /// # Errors
    /// [`PriceError::Unknown`] with the nearest names, [`PriceError::Ambiguous`].
    pub fn model(&self, name: &str, date: &str) -> Result<&TokenPrice, PriceError> {
        let all = self.tokens.iter().map(|p| {
            (p.provider.as_str(), p.model.as_str(), p.from.as_deref(), p.until.as_deref(), p)
        });
        find(all.collect(), name, date)
    }

    /// The price of a rented machine on a day, named like a model.
    ///
    /// # Errors
    /// As [`PriceTable::model`].
    pub fn machine(&self, name: &str, date: &str) -> Result<&MachineHour, PriceError> {
        let all = self.machines.iter().map(|p| {
            (p.provider.as_str(), p.machine.as_str(), p.from.as_deref(), p.until.as_deref(), p)
        });
        find(all.collect(), name, date)
    }
}

impl TokenPrice {
    /// `provider/model`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.provider, self.model)
    }

    /// The prices of a request with this many prompt tokens, by kind of service (None: the ordinary
    /// one). A tier holds for the whole request.
    ///
    /// # Errors
    /// The kinds of service there are, when this one is not among them.
    pub fn rates_for(&self, prompt_tokens: f64, service: Option<&str>) -> Result<Rates, String> {
        if let Some(service) = service {
            let known = self.services.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".to_owned() } else { known };
            return self.services.get(service).copied().ok_or_else(|| {
                format!("{} has no price for the service {service:?}; known: {known}", self.name())
            });
        }
        let tier = self.tiers.iter().rfind(|tier| prompt_tokens > tier.above as f64);
        Ok(tier.map_or(self.rates, |tier| tier.rates))
    }
}

type Name<'a> = (&'a String, &'a String);
type Days<'a> = (&'a Option<String>, &'a Option<String>);

/// Of the lines of each name the one that holds on a day.
fn in_force<'a, T: Clone + 'a>(
    lines: impl Iterator<Item = (Name<'a>, Days<'a>, &'a T)>,
    date: &str,
) -> Vec<T> {
    let mut latest: IndexMap<Name<'a>, (&Option<String>, &T)> = IndexMap::new();
    for (name, (from, until), line) in lines {
        let begun = from.as_deref().is_none_or(|from| from <= date);
        if begun && until.as_deref().is_none_or(|until| date <= until) {
            let held = latest.entry(name).or_insert((from, line));
            if *from >= *held.0 {
                *held = (from, line);
            }
        }
    }
    latest.into_values().map(|(_, line)| line.clone()).collect()
}

type Row<'a, T> = (&'a str, &'a str, Option<&'a str>, Option<&'a str>, &'a T);

fn find<'a, T>(rows: Vec<Row<'a, T>>, name: &str, date: &str) -> Result<&'a T, PriceError> {
    let full = |row: &Row<T>| format!("{}/{}", row.0, row.1);
    let mut named: Vec<&Row<T>> = rows.iter().filter(|row| full(row) == name).collect();
    if named.is_empty() {
        named = rows.iter().filter(|row| row.1 == name).collect();
        let mut sellers: Vec<String> = named.iter().map(|row| full(row)).collect();
        sellers.dedup();
        if sellers.len() > 1 {
            let known = sellers.join(", ");
            return Err(PriceError::Ambiguous { found: name.to_owned(), known });
        }
    }
    let valid = |row: &&&Row<T>| {
        row.2.is_none_or(|from| from <= date) && row.3.is_none_or(|until| date <= until)
    };
    let latest = named.iter().filter(valid).max_by_key(|row| row.2.unwrap_or(""));
    latest.map(|row| row.4).ok_or_else(|| {
        let hint = if named.is_empty() {
            nearest(rows.iter().map(full).collect(), name)
        } else {
            "\nhint: it has prices for other days only; state the price yourself".to_owned()
        };
        PriceError::Unknown { found: name.to_owned(), date: date.to_owned(), hint }
    })
}

fn nearest(mut names: Vec<String>, name: &str) -> String {
    names.sort_by(|a, b| {
        let likeness = |known: &str| {
            let model = known.split_once('/').map_or(known, |(_, model)| model);
            strsim::jaro_winkler(known, name).max(strsim::jaro_winkler(model, name))
        };
        likeness(b).total_cmp(&likeness(a))
    });
    names.dedup();
    names.truncate(3);
    if names.is_empty() {
        return "\nhint: the table is empty".to_owned();
    }
    format!("\nhint: near names are {}; or give the price itself", names.join(", "))
}

fn parse(text: &str, path: &Path, read_on: &str) -> Result<PriceTable, PriceError> {
    let table = match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(providers)) => from_genai(&providers, path, read_on)?,
        Ok(Value::Object(models)) if !models.contains_key("kind") => {
            from_litellm(&models, path, read_on)?
        }
        _ => from_lines(text, path)?,
    };
    for price in &table.tokens {
        check_tokens(price).map_err(|reason| malformed(path, &price.name(), reason))?;
    }
    for price in &table.machines {
        let place = format!("{}/{}", price.provider, price.machine);
        check_hour(price).map_err(|reason| malformed(path, &place, reason))?;
    }
    Ok(table)
}

fn from_lines(text: &str, path: &Path) -> Result<PriceTable, PriceError> {
    let mut table = PriceTable::default();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let reason = |error: serde_json::Error| {
            let expected = "expected one price a line, genai-prices' list or LiteLLM's object";
            malformed(path, &format!("line {}", index + 1), format!("{error}; {expected}"))
        };
        match serde_json::from_str(line).map_err(reason)? {
            Line::Tokens(price) => table.tokens.push(price),
            Line::Hour(price) => table.machines.push(price),
        }
    }
    Ok(table)
}

fn malformed(path: &Path, place: &str, reason: impl Into<String>) -> PriceError {
    PriceError::Malformed { path: path.to_owned(), place: place.to_owned(), reason: reason.into() }
}

fn check_tokens(price: &TokenPrice) -> Result<(), String> {
    check_days(&[&price.from, &price.until, &Some(price.read.clone())])?;
    check_currency(&price.currency)?;
    let all = price.tiers.iter().map(|tier| &tier.rates).chain(price.services.values());
    for rates in all.chain([&price.rates]) {
        let amounts = [Some(rates.input), rates.cached, rates.cache_write, Some(rates.output)];
        amounts.into_iter().flatten().try_for_each(check_amount)?;
    }
    if !price.tiers.is_sorted_by(|a, b| a.above < b.above) {
        return Err("its tiers are not in rising order".to_owned());
    }
    Ok(())
}

fn check_hour(price: &MachineHour) -> Result<(), String> {
    check_days(&[&price.from, &price.until, &Some(price.read.clone())])?;
    check_currency(&price.currency)?;
    check_amount(price.per_hour)
}

fn check_days(days: &[&Option<String>]) -> Result<(), String> {
    let format = time::macros::format_description!("[year]-[month]-[day]");
    for day in days.iter().filter_map(|day| day.as_ref()) {
        time::Date::parse(day, &format)
            .map_err(|_| format!("found the day {day:?}; expected year-month-day"))?;
    }
    Ok(())
}

fn check_currency(code: &str) -> Result<(), String> {
    let fine = code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase());
    if fine {
        Ok(())
    } else {
        Err(format!("found the currency {code:?}; expected a code like EUR"))
    }
}

fn check_amount(amount: f64) -> Result<(), String> {
    let fine = amount >= 0.0 && amount.is_finite();
    if fine { Ok(()) } else { Err(format!("found the price {amount}; expected at least 0")) }
}

/// genai-prices: a list of providers with models; a model's `prices` is one object, or a list of which
/// the last line that has begun holds. Lines for certain hours of the day are left out where a dearer
/// one stands beside them, so that nothing is reckoned too cheap.
fn from_genai(providers: &[Value], path: &Path, read_on: &str) -> Result<PriceTable, PriceError> {
    let mut table = PriceTable::default();
    for provider in providers {
        let seller = provider["id"].as_str().unwrap_or_default();
        let url = provider["pricing_urls"][0].as_str().unwrap_or("genai-prices");
        for model in provider["models"].as_array().into_iter().flatten() {
            let name = model["id"].as_str().unwrap_or_default();
            let place = format!("{seller}/{name}");
            let lines = match &model["prices"] {
                Value::Array(lines) => lines.clone(),
                one @ Value::Object(_) => vec![serde_json::json!({ "prices": one })],
                _ => {
                    return Err(malformed(
                        path,
                        &place,
                        "found no prices; expected an object or a list",
                    ));
                }
            };
            table.tokens.extend(
                genai_model(&lines, (seller, name), url, read_on)
                    .map_err(|reason| malformed(path, &place, reason))?,
            );
        }
    }
    if table.tokens.is_empty() {
        return Err(malformed(path, "the list", "found no prices of tokens in it"));
    }
    Ok(table)
}

fn genai_model(
    lines: &[Value],
    (provider, model): (&str, &str),
    url: &str,
    read_on: &str,
) -> Result<Vec<TokenPrice>, String> {
    let mut found: Vec<TokenPrice> = Vec::new();
    for line in lines {
        let prices = line["prices"].as_object().ok_or("found a line without prices")?;
        // Models that are paid by the request, the image or the minute.
        let Some(rates) = genai_rates(prices, None)? else { continue };
        let from = line["constraint"]["start_date"].as_str().map(str::to_owned);
        let hours = line["constraint"]["start_time"].is_string();
        let mut starts: Vec<u64> = prices
            .values()
            .flat_map(|price| price["tiers"].as_array().into_iter().flatten())
            .filter_map(|tier| tier["start"].as_u64())
            .collect();
        starts.sort_unstable();
        starts.dedup();
        let tier =
            |above: u64| Ok(genai_rates(prices, Some(above))?.map(|rates| Tier { above, rates }));
        let tiers: Vec<Option<Tier>> =
            starts.into_iter().map(tier).collect::<Result<_, String>>()?;
        let price = TokenPrice {
            provider: provider.to_owned(),
            model: model.to_owned(),
            from,
            until: None,
            currency: "USD".to_owned(),
            rates,
            tiers: tiers.into_iter().flatten().collect(),
            services: IndexMap::new(),
            serves_lora: false,
            source: format!("genai-prices (MIT), {url}"),
            read: read_on.to_owned(),
        };
        let rival = found.iter().position(|other| hours && other.from == price.from);
        match rival {
            Some(place) if found[place].rates.output < price.rates.output => found[place] = price,
            Some(_) => {}
            None => found.push(price),
        }
    }
    Ok(found)
}

/// The rates at a tier's start; None when tokens have no price here.
fn genai_rates(prices: &Map<String, Value>, tier: Option<u64>) -> Result<Option<Rates>, String> {
    let amount = |name: &str| -> Result<Option<f64>, String> {
        let Some(price) = prices.get(name) else { return Ok(None) };
        let reached = |start: &Value| tier.is_some_and(|t| start.as_u64().is_some_and(|s| s <= t));
        let mut tiers = price["tiers"].as_array().into_iter().flatten();
        let tiered = tiers.rfind(|tier| reached(&tier["start"]));
        let number = tiered.map_or(price.get("base").unwrap_or(price), |tier| &tier["price"]);
        let found = || format!("{name} is {price}; expected a number, or base and tiers");
        number.as_f64().map(Some).ok_or_else(found)
    };
    let (Some(input), Some(output)) = (amount("input_mtok")?, amount("output_mtok")?) else {
        return Ok(None);
    };
    let (cached, cache_write) = (amount("cache_read_mtok")?, amount("cache_write_mtok")?);
    Ok(Some(Rates { input, cached, cache_write, output }))
}

/// LiteLLM: one object, prices per token, other services and tiers as endings of the names.
fn from_litellm(
    models: &Map<String, Value>,
    path: &Path,
    read_on: &str,
) -> Result<PriceTable, PriceError> {
    let mut table = PriceTable::default();
    for (name, model) in models {
        let Some(fields) = model.as_object() else {
            return Err(malformed(path, name, "found no object; expected the prices of a model"));
        };
        let Some(rates) = litellm_rates(fields, "") else { continue };
        let provider = fields.get("litellm_provider").and_then(Value::as_str).unwrap_or("unknown");
        let prefix = format!("{provider}/");
        let mut bounds: Vec<u64> = fields.keys().filter_map(|key| tier_bound(key)).collect();
        bounds.sort_unstable();
        bounds.dedup();
        let tier = |&above: &u64| {
            let rates = litellm_rates(fields, &format!("_above_{}k_tokens", above / 1000))?;
            Some(Tier { above, rates })
        };
        let services = [("batch", "_batches"), ("flex", "_flex"), ("priority", "_priority")];
        let service = |&(service, ending): &(&str, &str)| {
            Some((service.to_owned(), litellm_rates(fields, ending)?))
        };
        table.tokens.push(TokenPrice {
            provider: provider.to_owned(),
            model: name.strip_prefix(&prefix).unwrap_or(name).to_owned(),
            from: None,
            until: None,
            currency: "USD".to_owned(),
            rates,
            tiers: bounds.iter().filter_map(tier).collect(),
            services: services.iter().filter_map(service).collect(),
            serves_lora: false,
            source: "LiteLLM's price list (MIT), which has no dates".to_owned(),
            read: read_on.to_owned(),
        });
    }
    if table.tokens.is_empty() {
        return Err(malformed(path, "the object", "found no prices of tokens in it"));
    }
    Ok(table)
}

/// `input_cost_per_token_above_200k_tokens` begins at 200,000.
fn tier_bound(key: &str) -> Option<u64> {
    let bound = key.strip_prefix("input_cost_per_token_above_")?.strip_suffix("k_tokens")?;
    bound.parse::<u64>().ok().filter(|&k| k < 1_000_000).map(|k| k * 1000)
}

fn litellm_rates(fields: &Map<String, Value>, ending: &str) -> Option<Rates> {
    let amount = |name: &str| {
        let per_token = fields.get(&format!("{name}{ending}"))?.as_f64()?;
        // Per million, without the noise of the multiplication.
        Some((per_token * 1e15).round() / 1e9)
    };
    Some(Rates {
        input: amount("input_cost_per_token")?,
        cached: amount("cache_read_input_token_cost"),
        cache_write: amount("cache_creation_input_token_cost"),
        output: amount("output_cost_per_token")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: &str = "2026-11-27";

    fn read(text: &str) -> Result<PriceTable, PriceError> {
        parse(text, Path::new("p.json"), "2026-08-21")
    }

    #[test]
    fn the_shipped_table_has_a_source_and_a_day_in_every_line() {
        let table = PriceTable::shipped().unwrap();
        assert!(table.tokens.len() >= 30 && table.machines.len() >= 6);
        assert!(
            table.tokens.iter().all(|p| !p.source.is_empty() && p.read.as_str() >= "2026-01-01")
        );
        assert!(table.machines.iter().all(|p| !p.source.is_empty()));
        assert!(table.tokens.iter().any(|p| p.serves_lora), "no host of adapters");
        assert_eq!(table.model("openai/gpt-4o-mini", DAY).unwrap().rates.input, 0.15);
        assert_eq!(read(&table.to_jsonl()).unwrap(), table);
    }

    #[test]
    fn the_price_of_the_day_counts() {
        let table = PriceTable::shipped().unwrap();
        let input = |day: &str| table.model("gpt-5.6-luna", day).unwrap().rates.input;
        assert_eq!((input("2026-07-29"), input("2026-07-30")), (1.0, 0.2));
        let sonnet = |day: &str| table.model("claude-sonnet-5", day).unwrap().rates.input;
        assert_eq!((sonnet("2026-08-31"), sonnet("2026-09-01")), (2.0, 3.0));
    }

    #[test]
    fn a_day_has_one_price_of_each_name() {
        let table = PriceTable::shipped().unwrap();
        for day in ["2026-07-29", "2026-09-01", DAY] {
            let held = table.on(day);
            let names: std::collections::HashSet<String> =
                held.tokens.iter().map(TokenPrice::name).collect();
            assert_eq!(names.len(), held.tokens.len());
            for price in &held.tokens {
                assert_eq!(table.model(&price.name(), day).unwrap(), price, "{day}");
            }
            for price in &held.machines {
                let name = format!("{}/{}", price.provider, price.machine);
                assert_eq!(table.machine(&name, day).unwrap(), price, "{day}");
            }
        }
    }

    #[test]
    fn unknown_and_ambiguous_names_say_what_there_is() {
        let table = PriceTable::shipped().unwrap();
        let error = table.model("gpt-4o-mni", DAY).unwrap_err().to_string();
        assert!(error.contains("openai/gpt-4o-mini"), "{error}");
        let error = table.machine("L4", DAY).unwrap_err().to_string();
        assert!(error.contains("scaleway/L4-1-24G"), "{error}");
        let line = |provider: &str| {
            format!(
                r#"{{"kind":"tokens","provider":"{provider}","model":"m","currency":"EUR","rates":{{"input":1,"output":2}},"source":"s","read":"2026-01-01","until":"2026-02-01"}}"#
            )
        };
        let table = read(&[line("a"), line("b")].join("\n")).unwrap();
        assert!(table.model("m", "2026-01-15").unwrap_err().to_string().contains("a/m, b/m"));
        let error = table.model("a/m", DAY).unwrap_err().to_string();
        assert!(error.contains("other days only"), "{error}");
    }

    #[test]
    fn genai_prices_are_read_with_days_and_tiers() {
        let table = read(
            r#"[{"id": "x", "pricing_urls": ["https://x.example"], "models": [
            {"id": "tiered", "prices": {"input_mtok": {"base": 5, "tiers": [{"start": 200000, "price": 10}]},
              "cache_read_mtok": 0.5, "output_mtok": {"base": 25, "tiers": [{"start": 200000, "price": 37.5}]}}},
            {"id": "dated", "prices": [{"prices": {"input_mtok": 2, "output_mtok": 10}},
              {"constraint": {"start_date": "2026-09-01"}, "prices": {"input_mtok": 3, "output_mtok": 15}}]},
            {"id": "nightly", "prices": [{"prices": {"input_mtok": 1, "output_mtok": 2}},
              {"constraint": {"start_time": "00:30:00Z"}, "prices": {"input_mtok": 2, "output_mtok": 4}}]},
            {"id": "images", "prices": {"requests_kcount": 3}}]}]"#,
        )
        .unwrap();
        assert_eq!(table.tokens.len(), 4);
        let tiered = table.model("tiered", DAY).unwrap();
        assert_eq!(tiered.rates_for(200_000.0, None).unwrap().input, 5.0);
        let long = tiered.rates_for(200_001.0, None).unwrap();
        assert_eq!((long.input, long.cached, long.output), (10.0, Some(0.5), 37.5));
        assert_eq!(table.model("dated", "2026-08-31").unwrap().rates.input, 2.0);
        assert_eq!(table.model("dated", DAY).unwrap().rates.input, 3.0);
        assert_eq!(table.model("nightly", DAY).unwrap().rates.output, 4.0);
    }

    #[test]
    fn litellm_prices_are_read_with_services_and_tiers() {
        let table = read(
            r#"{"gpt-4o": {"litellm_provider": "openai", "input_cost_per_token": 2.5e-06,
              "cache_read_input_token_cost": 1.25e-06, "output_cost_per_token": 1e-05,
              "input_cost_per_token_batches": 1.25e-06, "output_cost_per_token_batches": 5e-06},
            "groq/long": {"litellm_provider": "groq", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05,
              "input_cost_per_token_above_200k_tokens": 6e-06, "output_cost_per_token_above_200k_tokens": 2.25e-05},
            "image": {"litellm_provider": "x", "output_cost_per_image": 0.04}}"#,
        )
        .unwrap();
        assert_eq!(table.tokens.len(), 2);
        let gpt = table.model("openai/gpt-4o", DAY).unwrap();
        assert_eq!((gpt.rates.input, gpt.rates.cached, gpt.rates.output), (2.5, Some(1.25), 10.0));
        assert_eq!(gpt.rates_for(1.0, Some("batch")).unwrap().output, 5.0);
        assert!(gpt.rates_for(1.0, Some("flex")).unwrap_err().contains("known: batch"));
        let long = table.model("groq/long", DAY).unwrap();
        assert_eq!(long.rates_for(300_000.0, None).unwrap().output, 22.5);
    }

    #[test]
    fn the_published_tables_agree_with_ours() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/api");
        if !dir.is_dir() {
            eprintln!("skipped: {} is not here", dir.display());
            return;
        }
        let genai = PriceTable::read(&dir.join("genai-prices.json"), "2026-08-21").unwrap();
        let litellm = PriceTable::read(&dir.join("litellm-prices.json"), "2026-07-01").unwrap();
        assert!(genai.tokens.len() > 1000 && litellm.tokens.len() > 150);
        let ours = PriceTable::shipped().unwrap();
        for price in ours.tokens.iter().filter(|p| p.source.starts_with("genai-prices")) {
            // Compared on a day of the line itself.
            let day = price.until.clone().or(price.from.clone()).unwrap_or(price.read.clone());
            let theirs = genai.model(&price.name(), &day).unwrap();
            assert_eq!(theirs.rates, price.rates, "{} on {day}", price.name());
        }
        assert_eq!(litellm.model("openai/gpt-4o", DAY).unwrap().rates.input, 2.5);
        // An update replaces what it knows and keeps the rest.
        let machines = ours.machines.len();
        let updated = ours.updated(genai.clone());
        assert_eq!(updated.machines.len(), machines);
        assert_eq!(updated.tokens.iter().filter(|p| p.name() == "openai/gpt-4o").count(), 1);
    }

    #[test]
    fn what_is_no_price_table_is_named() {
        for (text, expected) in [
            ("", ""),
            ("nonsense", "line 1"),
            ("[]", "no prices"),
            ("{}", "no prices"),
            (r#"[{"id":"x","models":[{"id":"m","prices":3}]}]"#, "x/m"),
            (
                r#"[{"id":"x","models":[{"id":"m","prices":{"input_mtok":"a","output_mtok":1}}]}]"#,
                "input_mtok is \"a\"",
            ),
            (r#"{"m": 3}"#, "m: found no object"),
            (r#"{"m": {"input_cost_per_token": -1, "output_cost_per_token": 1}}"#, "at least 0"),
            (
                r#"{"kind":"hour","provider":"p","machine":"m","currency":"euro","per_hour":1,"source":"s","read":"2026-01-01"}"#,
                "euro",
            ),
            (
                r#"{"kind":"hour","provider":"p","machine":"m","currency":"EUR","per_hour":1,"source":"s","read":"2026-13-01"}"#,
                "2026-13-01",
            ),
            (
                r#"{"kind":"hour","provider":"p","machine":"m","currency":"EUR","per_hour":1,"source":"s","read":"2026-01-01","x":1}"#,
                "unknown field",
            ),
        ] {
            match read(text) {
                Ok(table) => assert!(expected.is_empty() && table.tokens.is_empty(), "{text}"),
                Err(error) => assert!(error.to_string().contains(expected), "{text}: {error}"),
            }
        }
    }
}
