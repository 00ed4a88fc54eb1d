//! The phrases of the recipes' data. Where there is a test bank, it says the same things in other words
//! than the training bank.
//!
//! Marks: `{v}` a value, `{n}` a first name, `{a}` an appliance, `{d}` a weekday, `{p}` pounds, `{m}`
//! minutes.

use super::WEEKDAYS;
use crate::sample_trade::{Draw, Phrases};

/// What a text does not answer.
pub(super) const MISSING: &str = "The text does not say.";

/// One thing that a firm says of itself: its value, and how it is stated and asked for.
pub(super) struct Fact {
    pub(super) value: fn(&mut Draw) -> String,
    pub(super) says: Phrases,
    pub(super) asks: Phrases,
}

pub(super) const FIRMS: Phrases = Phrases {
    train: &[
        "Harbour Repairs",
        "Millgate Appliance Service",
        "Fix and Sons",
        "The Copper Spanner",
        "Northside Domestic Engineers",
        "Brook Lane Repairs",
        "Hearth and Drum",
        "Rapid Rinse Service",
    ],
    test: &["Old Quay Appliances", "Lantern Street Engineers", "Turnbolt", "Valley White Goods"],
};

pub(super) const FACTS: &[Fact] = &[
    Fact {
        value: |draw| format!("{} pounds", 30 + 5 * draw.below(16)),
        says: Phrases {
            train: &[
                "The call-out fee is {v}.",
                "We charge {v} for the call-out.",
                "Coming to your home costs {v}.",
                "A visit costs {v}, parts not included.",
            ],
            test: &["For a visit we ask {v}.", "Our call-out costs {v} in all areas."],
        },
        asks: Phrases {
            train: &[
                "What is the call-out fee?",
                "How much do you charge for a visit?",
                "What does it cost when you come?",
                "How much is the call-out?",
            ],
            test: &["What would a visit cost me?", "How high is your call-out fee?"],
        },
    },
    Fact {
        value: |draw| format!("{} months", 3 * (1 + draw.below(12))),
        says: Phrases {
            train: &[
                "Our work is guaranteed for {v}.",
                "The guarantee on repairs lasts {v}.",
                "Every repair has a guarantee of {v}.",
                "We guarantee repairs for {v}.",
            ],
            test: &["Repairs carry a {v} guarantee.", "You have a guarantee for {v} on our work."],
        },
        asks: Phrases {
            train: &[
                "How long is the guarantee?",
                "For how long are repairs guaranteed?",
                "How long do you guarantee your work?",
                "What guarantee do I get?",
            ],
            test: &["How long does your guarantee last?", "Is there a guarantee, and how long?"],
        },
    },
    Fact {
        value: |draw| format!("{} days", 2 + draw.below(19)),
        says: Phrases {
            train: &[
                "Parts arrive within {v}.",
                "Ordering a part takes {v}.",
                "We wait {v} for parts as a rule.",
                "Spare parts are here in {v}.",
            ],
            test: &["Most parts take {v} to reach us.", "A part that we order needs {v}."],
        },
        asks: Phrases {
            train: &[
                "How long do parts take?",
                "When will the part arrive?",
                "How many days until a part is here?",
                "How long is the wait for parts?",
            ],
            test: &["How long must I wait for a part?", "How soon do spare parts come?"],
        },
    },
    Fact {
        value: |draw| format!("{} hours", 6 * (1 + draw.below(12))),
        says: Phrases {
            train: &[
                "Please cancel {v} before the visit.",
                "Cancelling is free until {v} before.",
                "You can cancel up to {v} ahead.",
                "We need {v} notice to cancel.",
            ],
            test: &["Cancel at the latest {v} ahead.", "To cancel, tell us {v} before we come."],
        },
        asks: Phrases {
            train: &[
                "How late can I cancel?",
                "How much notice do you need to cancel?",
                "Until when can I cancel a visit?",
                "When must I cancel?",
            ],
            test: &["How long before must I cancel?", "What notice do I give to cancel?"],
        },
    },
    Fact {
        value: |draw| format!("{} miles", 4 + draw.below(40)),
        says: Phrases {
            train: &[
                "We come to homes within {v}.",
                "We drive up to {v}.",
                "Our area reaches {v} around the workshop.",
                "We serve addresses up to {v} away.",
            ],
            test: &["We travel as far as {v}.", "Homes up to {v} from here are in our area."],
        },
        asks: Phrases {
            train: &[
                "How far do you drive?",
                "How far away may I live?",
                "How large is your area?",
                "Up to what distance do you come?",
            ],
            test: &["How far do you travel?", "How far from you is still in the area?"],
        },
    },
    Fact {
        value: |draw| {
            let ways = ["card", "bank transfer", "cash", "cheque", "direct debit"];
            (*draw.pick(&ways)).to_owned()
        },
        says: Phrases {
            train: &[
                "We only take {v}.",
                "Please pay by {v}.",
                "Payment is by {v}.",
                "Bills are paid by {v}.",
            ],
            test: &["You pay us by {v}.", "The bill is settled by {v}."],
        },
        asks: Phrases {
            train: &[
                "How do I pay?",
                "What kind of payment do you take?",
                "How are bills paid?",
                "By what means can I pay?",
            ],
            test: &["How can I pay the bill?", "Which payment do you take?"],
        },
    },
    Fact {
        value: |draw| (*draw.pick(WEEKDAYS)).to_owned(),
        says: Phrases {
            train: &[
                "The workshop is closed on {v}.",
                "We are closed every {v}.",
                "On {v} nobody is here.",
                "Our day off is {v}.",
            ],
            test: &["We do not open on {v}.", "Each {v} the workshop stays closed."],
        },
        asks: Phrases {
            train: &[
                "On which day are you closed?",
                "When is the workshop closed?",
                "Which day is your day off?",
                "What day is nobody there?",
            ],
            test: &["Which day are you not open?", "What day of the week are you closed?"],
        },
    },
    Fact {
        value: |draw| format!("{} o'clock", 7 + draw.below(4)),
        says: Phrases {
            train: &[
                "We open at {v}.",
                "The phone is answered from {v}.",
                "The day starts at {v}.",
                "From {v} somebody is in the office.",
            ],
            test: &["The workshop opens at {v}.", "You can ring from {v}."],
        },
        asks: Phrases {
            train: &[
                "When do you open?",
                "From when is the phone answered?",
                "At what time do you start?",
                "How early can I call?",
            ],
            test: &["At what time do you open?", "From what time can I ring?"],
        },
    },
];

/// A note between colleagues, in many ways, and the letter in the house style.
pub(super) struct Letter {
    pub(super) notes: Phrases,
    pub(super) text: &'static str,
}

pub(super) const LETTERS: &[Letter] = &[
    Letter {
        notes: Phrases {
            train: &[
                "part for {n}'s {a} ordered, here {d}",
                "tell {n}: {a} part comes {d}",
                "{n}, {a}, part on order, should arrive {d}",
            ],
            test: &[
                "{a} part for {n} is ordered, we get it {d}",
                "order placed for {n}'s {a}, in {d}",
            ],
        },
        text: "Dear {n},\nthank you for your patience. The part for your {a} is ordered and should reach us on {d}. We will call you the moment it is here.\nYour repair team",
    },
    Letter {
        notes: Phrases {
            train: &[
                "{n} {a} fixed, bill {p}",
                "{a} of {n} done, {p} pounds",
                "tell {n} the {a} works again, cost {p}",
            ],
            test: &["repaired {n}'s {a}, they owe {p}", "{n}: {a} running again, {p} to pay"],
        },
        text: "Dear {n},\ngood news: your {a} is working again. The bill comes to {p} pounds, and the repair is guaranteed for a year.\nYour repair team",
    },
    Letter {
        notes: Phrases {
            train: &[
                "cant make it to {n} today, {d} instead, {a}",
                "{n} visit for {a} moved to {d}, we are late",
                "running late, {n} ({a}) gets {d}",
            ],
            test: &["no time for {n}'s {a} today, offer {d}", "{a} visit at {n} slips to {d}"],
        },
        text: "Dear {n},\nwe are sorry that we cannot come as planned. We would like to see to your {a} on {d} instead. Please tell us if that day does not suit you.\nYour repair team",
    },
    Letter {
        notes: Phrases {
            train: &[
                "{n} {a} not worth fixing, would be {p}",
                "{a} of {n} too old, repair {p}, advise new one",
                "tell {n} {a} beyond repair really, {p}",
            ],
            test: &["{n}'s {a}: {p} to mend, better buy new", "no point mending {n}'s {a} for {p}"],
        },
        text: "Dear {n},\nwe have looked at your {a} with care. A repair would cost {p} pounds, and to be honest a new one would serve you better. The choice is yours.\nYour repair team",
    },
    Letter {
        notes: Phrases {
            train: &[
                "{n} hasnt paid {p} for {a}, remind",
                "reminder to {n}, {a} bill {p} open",
                "{p} still open, {n}, {a}",
            ],
            test: &["{n} still owes {p} for the {a}", "{a} bill of {p} unpaid by {n}, nudge"],
        },
        text: "Dear {n},\nperhaps it slipped your mind: {p} pounds for the repair of your {a} are still open. If you have paid already, please forget this letter.\nYour repair team",
    },
    Letter {
        notes: Phrases {
            train: &[
                "{n} out when we came {d} for {a}",
                "nobody home at {n}'s on {d}, {a}",
                "{d} no answer at {n}'s door, {a} job",
            ],
            test: &[
                "stood at {n}'s door {d}, nobody in, {a}",
                "{n} missed us on {d}, {a} still broken",
            ],
        },
        text: "Dear {n},\nwe rang your bell on {d} to see to your {a}, but seem to have missed you. Please call us, and we will find another day.\nYour repair team",
    },
    Letter {
        notes: Phrases {
            train: &[
                "quote {n} {a} {p}",
                "{a} quote for {n}: {p}, wait for ok",
                "{n} wants price for {a}, say {p}",
            ],
            test: &["price for {n}'s {a} would be {p}, ask first", "estimate {p} to {n}, {a}"],
        },
        text: "Dear {n},\nthank you for asking us. We would repair your {a} for {p} pounds, parts and work together. We start as soon as you say yes.\nYour repair team",
    },
    Letter {
        notes: Phrases {
            train: &[
                "{n} booked {d} for {a}",
                "visit {n} {d}, {a}, confirm",
                "confirm {d} with {n} ({a})",
            ],
            test: &[
                "{d} is fixed for {n}'s {a}, write them",
                "{n} gets {d} for the {a}, confirm it",
            ],
        },
        text: "Dear {n},\nthank you for your message. We will come on {d} to look at your {a}. Please leave some room around it, so that we can work.\nYour repair team",
    },
];

pub(super) const OPENINGS: Phrases = Phrases {
    train: &[
        "Thank you for writing, that sounds annoying.",
        "Sorry to hear about your {a}.",
        "Thank you for telling us about the {a}.",
        "That is no fun, and we would like to help.",
        "We are sorry that your {a} lets you down.",
        "Thanks for the clear message about your {a}.",
    ],
    test: &[
        "What a nuisance, thank you for telling us.",
        "We feel for you, a broken {a} is a pain.",
    ],
};

pub(super) const NEXT_STEPS: Phrases = Phrases {
    train: &[
        "We will call you today to agree on a time.",
        "Please switch the {a} off until we have seen it.",
        "An engineer will look at it and tell you the price before any work.",
        "Could you send us the model number of the {a}?",
        "We have noted it and will offer you the next free visit.",
        "Please tell us which days suit you for a visit.",
    ],
    test: &[
        "Which day would suit you for us to look at the {a}?",
        "You will hear the price from us before we begin any work.",
    ],
};

pub(super) const WAYS_OUT: Phrases = Phrases {
    train: &[
        "If anything changes, just write to us.",
        "We will keep you informed.",
        "Please ask if something is not clear.",
        "We look forward to helping you.",
        "Until then, call us at any time.",
    ],
    test: &["Do write if you have any question.", "We will let you know how it goes."],
};

pub(super) const UNKINDNESS: Phrases = Phrases {
    train: &[
        "You must have used your {a} wrongly, as people do.",
        "We have many such messages every day.",
        "To be frank with you, that is your own fault.",
        "Read the manual of your {a} before you write.",
        "A {a} like that is old rubbish anyway.",
        "You should have called much earlier.",
    ],
    test: &["Did you even read the manual?", "Nobody treats a {a} like this without breaking it."],
};

pub(super) const PROMISES: Phrases = Phrases {
    train: &[
        "It will surely cost nothing at all, do not worry.",
        "Somebody comes within the hour, that is a promise.",
        "Open the {a} and pull out the red wire yourself.",
        "We cannot say when we have time, so wait.",
        "It is always the pump, we need not look at it.",
        "Just buy a new {a}, that is what everybody does.",
    ],
    test: &[
        "We promise that it is repaired tonight, whatever it is.",
        "Take the back off the {a} yourself, it is only electricity.",
    ],
};

pub(super) const ASIDES: Phrases = Phrases {
    train: &[
        "Do not write to us again about this.",
        "There is nothing more to say about this.",
        "You can take it or leave it, as you like.",
        "Other people have real problems with their homes.",
        "Now you know, so stop asking.",
    ],
    test: &["That is all you get from us.", "Please do not bother us with it."],
};

/// A kind of job in the firm's reports.
pub(super) struct Job {
    pub(super) appliances: &'static [&'static str],
    pub(super) reported: &'static [&'static str],
    /// What was wrong, and what was done about it.
    pub(super) work: &'static [(&'static str, &'static str)],
}

pub(super) const SENDERS: &[&str] = &[
    "{n} drove to the customer.",
    "{n} took the job.",
    "The visit was made by {n}.",
    "{n} and the apprentice went together.",
    "Morning round, {n}.",
    "Afternoon round, {n}.",
];

pub(super) const TESTED: &[&str] = &[
    "Tested for {m} minutes, no fault came back. {p} pounds, paid by card.",
    "A full test took {m} minutes and was clean. Bill of {p} pounds sent.",
    "{m} minutes on site in all, {p} pounds, guarantee explained.",
    "The customer saw it work. {p} pounds for {m} minutes and parts.",
    "Earth and insulation measured, both good. {m} minutes, {p} pounds.",
    "Left the old part with the customer. {m} minutes, {p} pounds by transfer.",
];

const WET: &[&str] = &["washing machine", "dishwasher"];
const COLD: &[&str] = &["fridge", "freezer"];
const HOT: &[&str] = &["oven", "hob", "dryer", "water heater"];

pub(super) const JOBS: &[Job] = &[
    Job {
        appliances: WET,
        reported: &[
            "The {a} did not drain and water stood in it.",
            "Reported: the {a} stops before the spin and stays full.",
        ],
        work: &[
            ("The filter was blocked by a coin and lint.", "Filter cleaned, pump chamber rinsed."),
            (
                "The drain pump hummed but its wheel was loose on the shaft.",
                "Fitted a new drain pump from the van.",
            ),
            (
                "The drain hose had a sharp bend behind the cupboard.",
                "Hose laid anew with a wide bow and fixed with a clip.",
            ),
        ],
    },
    Job {
        appliances: WET,
        reported: &[
            "Water under the {a} after every wash.",
            "The {a} leaks at the front, the floor is wet.",
        ],
        work: &[
            (
                "The door seal had a tear of two centimetres at the bottom.",
                "New door seal fitted and the spring ring seated.",
            ),
            (
                "The inlet valve dripped at its joint.",
                "Inlet valve replaced, joint wiped dry and watched.",
            ),
            (
                "The soap drawer was clogged, so that water ran over.",
                "Drawer and its channel cleaned with hot water.",
            ),
        ],
    },
    Job {
        appliances: COLD,
        reported: &[
            "The {a} does not get cold any more.",
            "Food thaws in the {a}, the motor never stops.",
        ],
        work: &[
            (
                "The fan behind the back wall was frozen in.",
                "Thawed the back wall and set the heater of the drain free.",
            ),
            (
                "The thermostat read six degrees too low.",
                "Thermostat replaced and set to four degrees.",
            ),
            (
                "The condenser was covered with dust and cat hair.",
                "Condenser brushed and vacuumed, the grille put back.",
            ),
        ],
    },
    Job {
        appliances: HOT,
        reported: &[
            "The {a} stays cold although its lamp is on.",
            "Reported: no heat from the {a} since the weekend.",
        ],
        work: &[
            (
                "The heating element was open, no continuity.",
                "New element fitted, terminals tightened.",
            ),
            (
                "The safety cut-out had tripped and would not reset.",
                "Cut-out replaced and the cause, a dirty duct, removed.",
            ),
            (
                "A wire at the terminal block was burnt off.",
                "Wire shortened, new crimp and a new terminal block.",
            ),
        ],
    },
    Job {
        appliances: &["washing machine", "dryer", "dishwasher"],
        reported: &[
            "The {a} is very loud and walks across the room.",
            "A grinding noise from the {a}, worse when it turns fast.",
        ],
        work: &[
            (
                "Both bearings were worn and rust ran down the back.",
                "Bearings and shaft seal replaced in the workshop.",
            ),
            (
                "One foot was missing, so that it stood on three.",
                "New foot screwed in and all four levelled.",
            ),
            (
                "A hair clip was caught below the drum.",
                "Clip taken out through the element's opening.",
            ),
        ],
    },
    Job {
        appliances: &["oven", "dishwasher", "dryer", "freezer"],
        reported: &[
            "The fuse goes as soon as the {a} starts.",
            "The {a} trips the power after ten minutes.",
        ],
        work: &[
            (
                "Insulation of the element was down to nothing when warm.",
                "Element replaced, insulation now above the limit.",
            ),
            (
                "Water had reached the plug of the motor.",
                "Plug dried, greased and moved above the tray.",
            ),
            (
                "The mains filter was cracked and smelt burnt.",
                "Mains filter replaced, cable checked over its length.",
            ),
        ],
    },
];
