//! Money: what a request takes, what a month takes, and from what volume on one arm is cheaper than
//! another.
//!
//! [`CostPlan`] prices the mean request of one candidate. [`PriceTable`] holds dated prices with their
//! sources. [`economics`] sets arms side by side: cost per month against volume, break-even, payback,
//! and how far prices may move before the answer is another one.

mod economics;
mod prices;
mod request;

pub use economics::{
    ArmEconomics, ArmPlan, Crossing, Economics, EconomicsPlan, Estimate, Exchange, MachinePlan,
    OneOff, PairEconomics, PairPlan, RequestTokens, Running, Saving, Throughput, economics,
    own_machine_per_hour,
};
pub use prices::{MachineHour, PriceError, PriceTable, Rates, Tier, TokenPrice};
pub use request::{ApiPrice, Cost, CostError, CostPlan, MachinePrice, Traffic};
