//! What the licences of published models ask of one who passes on an adapted model: facts in short, no
//! licence text. One licence is one entry of [`LICENCES`]. It is a reminder; the licence itself decides.

/// A licence, and what it asks for when an adapted model is passed on.
#[derive(Debug)]
pub(crate) struct Licence {
    /// The Hub's name for it.
    pub(crate) id: &'static str,
    /// Its full name.
    pub(crate) name: &'static str,
    /// What the name of an adapted model must begin with.
    pub(crate) name_prefix: Option<&'static str>,
    /// The line that a file named Notice must hold.
    pub(crate) notice: Option<&'static str>,
    /// What must be done, a sentence each.
    pub(crate) obligations: &'static [&'static str],
}

const COPY: &str = "Pass on a copy of the licence.";
const CHANGED: &str = "Say in changed files that they were changed (the weights were).";
const CREDIT: &str = "Name the author, link the licence, and say that changes were made.";
const NOTICE: &str = "Keep the attribution in a file named Notice.";
const BUILT_WITH: &str = "Show \"Built with Llama\" where the product is presented.";
const NAMED: &str = "The model's name begins with \"Llama\".";
const POLICY: &str = "Use must keep to the licence's acceptable use policy.";
const MANY_USERS: &str =
    "A company with more than 700 million monthly users at the release needs a licence from Meta.";

/// Every licence that is known.
pub(crate) const LICENCES: &[Licence] = &[
    plain(
        "apache-2.0",
        "Apache License 2.0",
        &[
            COPY,
            "Keep copyright, patent and attribution notices, and a NOTICE file where there is one.",
            CHANGED,
        ],
    ),
    plain("mit", "MIT License", &["Pass on the copyright notice and the permission notice."]),
    plain(
        "bsd-3-clause",
        "BSD 3-Clause License",
        &[
            "Pass on the copyright notice, the conditions and the disclaimer.",
            "Do not use the authors' names to advertise the result.",
        ],
    ),
    plain("cc0-1.0", "Creative Commons Zero 1.0", &[]),
    plain("cc-by-4.0", "Creative Commons Attribution 4.0", &[CREDIT]),
    plain(
        "cc-by-sa-4.0",
        "Creative Commons Attribution-ShareAlike 4.0",
        &[CREDIT, "Pass on what is adapted from it under the same licence."],
    ),
    plain(
        "cc-by-nc-4.0",
        "Creative Commons Attribution-NonCommercial 4.0",
        &[CREDIT, "No commercial use."],
    ),
    Licence {
        id: "llama2",
        name: "Llama 2 Community License",
        name_prefix: None,
        notice: Some(
            "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
        ),
        obligations: &[COPY, NOTICE, POLICY, MANY_USERS],
    },
    Licence {
        id: "llama3",
        name: "Meta Llama 3 Community License",
        name_prefix: Some("Llama 3"),
        notice: Some(
            "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.",
        ),
        obligations: &[
            COPY,
            "Show \"Built with Meta Llama 3\" where the product is presented.",
            "The model's name begins with \"Llama 3\".",
            NOTICE,
            POLICY,
            MANY_USERS,
        ],
    },
    Licence {
        id: "llama3.1",
        name: "Llama 3.1 Community License",
        name_prefix: Some("Llama"),
        notice: Some(
            "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.",
        ),
        obligations: &[COPY, BUILT_WITH, NAMED, NOTICE, POLICY, MANY_USERS],
    },
    Licence {
        id: "llama3.2",
        name: "Llama 3.2 Community License",
        name_prefix: Some("Llama"),
        notice: Some(
            "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.",
        ),
        obligations: &[COPY, BUILT_WITH, NAMED, NOTICE, POLICY, MANY_USERS],
    },
    Licence {
        id: "llama3.3",
        name: "Llama 3.3 Community License",
        name_prefix: Some("Llama"),
        notice: Some(
            "Llama 3.3 is licensed under the Llama 3.3 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved.",
        ),
        obligations: &[COPY, BUILT_WITH, NAMED, NOTICE, POLICY, MANY_USERS],
    },
    Licence {
        id: "gemma",
        name: "Gemma Terms of Use",
        name_prefix: None,
        notice: Some(
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        ),
        obligations: &[
            "Pass on a copy of the terms.",
            "Bind those who receive the model to the use restrictions of the terms and of the prohibited use policy.",
            CHANGED,
            NOTICE,
        ],
    },
];

/// A licence that asks for no name and no notice of its own.
const fn plain(
    id: &'static str,
    name: &'static str,
    obligations: &'static [&'static str],
) -> Licence {
    Licence { id, name, name_prefix: None, notice: None, obligations }
}

/// The licence of this name, as a card or a GGUF file states it.
pub(crate) fn find(stated: &str) -> Option<&'static Licence> {
    let bare = |name: &str| name.trim().trim_matches(['"', '\'']).to_lowercase().replace(' ', "-");
    let stated = bare(stated);
    LICENCES.iter().find(|l| l.id == stated || bare(l.name) == stated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_found_by_name() {
        for (stated, id) in [
            ("apache-2.0", Some("apache-2.0")),
            ("Apache-2.0", Some("apache-2.0")),
            ("\"llama3.2\"", Some("llama3.2")),
            ("MIT License", Some("mit")),
            ("Gemma Terms of Use", Some("gemma")),
            ("unknown (the model folder has no card that states it)", None),
            ("", None),
        ] {
            assert_eq!(find(stated).map(|l| l.id), id, "{stated}");
        }
    }

    #[test]
    fn what_is_kept_in_fields_is_told_in_words() {
        for licence in LICENCES {
            let told = |what: &str| licence.obligations.iter().any(|o| o.contains(what));
            assert_eq!(told("name begins with"), licence.name_prefix.is_some(), "{}", licence.id);
            assert_eq!(told("file named Notice"), licence.notice.is_some(), "{}", licence.id);
        }
    }
}
