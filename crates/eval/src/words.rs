//! The report's words in other languages. English is written where it is used; a pattern that has a
//! line in [`FRENCH`] is said in French where that is asked for, any other stays English (such as what
//! a metric measures, or an endpoint's own words).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Display;

/// A language of reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English.
    #[default]
    En,
    /// French.
    Fr,
}

impl Language {
    /// The language of this code, `en` or `fr`.
    pub fn from_code(code: &str) -> Option<Language> {
        match code {
            "en" => Some(Language::En),
            "fr" => Some(Language::Fr),
            _ => None,
        }
    }

    /// Its code, as HTML has it.
    pub fn code(self) -> &'static str {
        match self {
            Language::En => "en",
            Language::Fr => "fr",
        }
    }

    /// An English text of ours in this language.
    pub(crate) fn t(self, english: &'static str) -> &'static str {
        match self {
            Language::En => english,
            Language::Fr => {
                FRENCH.iter().find(|(en, _)| *en == english).map_or(english, |(_, fr)| fr)
            }
        }
    }

    /// A pattern in this language, with values in place of `{name}`. Values are not read again: what
    /// looks like a place in them stays as it is.
    pub(crate) fn say(self, pattern: &'static str, values: &[(&str, &dyn Display)]) -> String {
        let mut text = String::new();
        let mut rest = self.t(pattern);
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (name, after) = after.split_once('}').unwrap_or((after, ""));
            match values.iter().find(|(known, _)| *known == name) {
                Some((_, value)) => text.push_str(&value.to_string()),
                None => text.push_str(name),
            }
            rest = after;
        }
        text + rest
    }

    /// One of two, by language.
    pub(crate) fn pick(self, english: String, french: String) -> String {
        match self {
            Language::En => english,
            Language::Fr => french,
        }
    }

    /// A number written the English way in this language's way: a decimal comma, and a narrow space
    /// between thousands.
    pub(crate) fn number(self, english: String) -> String {
        let letter = |c| match c {
            '.' => ',',
            ',' => '\u{202f}',
            ' ' => '\u{a0}',
            other => other,
        };
        match self {
            Language::En => english,
            Language::Fr => english.chars().map(letter).collect(),
        }
    }
}

/// English and French.
pub(crate) const FRENCH: &[(&str, &str)] = &[
    ("Worth it", "Rentable"),
    ("Not proven", "Non prouvé"),
    ("Not worth it", "Pas rentable"),
    // The page.
    ("What was asked for, and what was found", "Ce qui était demandé, et ce qui a été constaté"),
    ("Each rule of the verdict with its evidence", "Chaque règle du verdict avec sa preuve"),
    ("Rule", "Règle"),
    ("Found", "Constat"),
    ("Evidence", "Preuve"),
    ("✓ kept", "✓ respectée"),
    ("! warning", "! avertissement"),
    ("✗ open", "✗ ouverte"),
    ("✗ broken", "✗ violée"),
    ("Quality against cost", "Qualité et coût"),
    ("Scores", "Résultats"),
    ("Differences on the same examples", "Écarts sur les mêmes exemples"),
    (
        "Second candidate minus first, in percentage points, with 95\u{a0}% interval",
        "Second candidat moins premier, en points de pourcentage, avec l’intervalle à 95\u{a0}%",
    ),
    ("Metric", "Mesure"),
    ("Compared", "Comparaison"),
    ("Difference", "Écart"),
    ("On the scale", "Sur l’échelle"),
    ("Chance finding?", "Dû au hasard\u{a0}?"),
    ("Field by field", "Champ par champ"),
    (
        "Share of examples in which the field has the reference's value, with 95\u{a0}% interval",
        "Part des exemples où le champ a la valeur de référence, avec l’intervalle à 95\u{a0}%",
    ),
    ("Field", "Champ"),
    ("Examples", "Exemples"),
    ("Training loss", "Perte à l’entraînement"),
    ("Which examples the numbers stand for", "Les exemples derrière les nombres"),
    ("Examples side by side", "Exemples côte à côte"),
    ("Reference", "Référence"),
    ("Cost by volume", "Coût selon le volume"),
    (
        "With the 95\u{a0}% interval from the spread of the requests’ lengths",
        "Avec l’intervalle à 95\u{a0}% dû à la dispersion des longueurs des requêtes",
    ),
    ("Candidate", "Candidat"),
    ("1,000 requests", "1\u{a0}000 requêtes"),
    ("A month", "Par mois"),
    ("Machines", "Machines"),
    ("Busy", "Occupation"),
    ("Paid once", "Payé une fois"),
    ("Cost per 1,000 requests", "Coût de 1\u{a0}000 requêtes"),
    ("What was measured, and where", "Ce qui a été mesuré, et où"),
    ("Answering the test set", "Réponses au jeu de test"),
    (
        "Failed answers count as wrong. An answer that did not stop by itself was cut at the length limit. Speed counts prompts and answers.",
        "Une réponse manquante compte comme fausse. Une réponse qui ne s’est pas arrêtée d’elle-même a été coupée à la longueur limite. La vitesse compte invites et réponses.",
    ),
    ("Kind", "Genre"),
    ("Failed", "Échecs"),
    ("Stopped by itself", "Arrêt de soi-même"),
    ("Tokens of prompt and answer, mean", "Jetons d’invite et de réponse, moyenne"),
    ("Tokens a second", "Jetons par seconde"),
    ("Time", "Durée"),
    ("Time to the whole answer", "Temps jusqu’à la réponse entière"),
    (
        "As seen from here: of a rented model with the way there and back, of a local one with all requests under way at once",
        "Vu d’ici\u{a0}: pour un modèle loué, aller et retour compris\u{a0}; pour un modèle local, toutes les requêtes en même temps",
    ),
    ("Answers", "Réponses"),
    ("Half within", "La moitié en"),
    ("95 of 100 within", "95 sur 100 en"),
    ("Longest", "La plus longue"),
    ("How each was asked", "Comment chacun a été interrogé"),
    ("Further measurements", "Autres mesures"),
    ("Measured in this run, on this machine", "Mesuré pendant cet essai, sur cette machine"),
    ("What", "Quoi"),
    ("Value", "Valeur"),
    ("How", "Comment"),
    ("Data", "Données"),
    ("Licences", "Licences"),
    ("Files", "Fichiers"),
    (
        "SHA-256 digests: the same digest is the same file",
        "Empreintes SHA-256\u{a0}: même empreinte, même fichier",
    ),
    ("File", "Fichier"),
    ("Size", "Taille"),
    ("SHA-256", "SHA-256"),
    ("decided by", "décidé par"),
    (
        "Higher is better, further left is cheaper; lines show the 95\u{a0}% interval of the metric that decides, the dashed line those that none beats on both.",
        "Plus haut est meilleur, plus à gauche est moins cher\u{a0}; les traits montrent l’intervalle à 95\u{a0}% de la mesure qui décide, la ligne tiretée ceux que personne ne bat sur les deux.",
    ),
    ("for 1,000 requests (logarithmic)", "pour 1\u{a0}000 requêtes (échelle logarithmique)"),
    ("on the line", "sur la ligne"),
    ("examples.", "exemples."),
    (
        "Each example is answered by both, so only the difference per example counts. Width of the scale, to either side of no difference:",
        "Les deux répondent à chaque exemple, donc seul l’écart par exemple compte. Largeur de l’échelle, de part et d’autre de zéro\u{a0}:",
    ),
    ("the dashed line is the required gain", "la ligne tiretée est le gain demandé"),
    ("decides", "décide"),
    ("optimizer step", "pas d’optimisation"),
    ("training", "entraînement"),
    (
        "held-out. Nats per supervised token; lower is better.",
        "mis de côté. Nats par jeton appris\u{a0}; moins est mieux.",
    ),
    ("requests a month; upwards, a month in", "requêtes par mois\u{a0}; vers le haut, par mois en"),
    (
        "The full vertical line is where the two cost the same, the band its 95\u{a0}% interval.",
        "La ligne verticale pleine est le volume où les deux coûtent autant, la bande son intervalle à 95\u{a0}%.",
    ),
    ("The dashed line is the volume stated.", "La ligne tiretée est le volume indiqué."),
    ("No cost was stated.", "Aucun coût n’a été indiqué."),
    (
        "Bars show the mean over the test examples, from 0 to 100\u{a0}%. Lines show the 95\u{a0}% interval: what the score could be on other examples of the same kind.",
        "Les barres montrent la moyenne sur les exemples de test, de 0 à 100\u{a0}%. Les traits montrent l’intervalle à 95\u{a0}%\u{a0}: ce que le résultat pourrait être sur d’autres exemples du même genre.",
    ),
    (
        "Taken at even distances through the test set, not by result.",
        "Pris à distances égales dans le jeu de test, sans égard au résultat.",
    ),
    (
        "Some at even distances through the test set, and the first of every list above.",
        "Quelques-uns à distances égales dans le jeu de test, et les premiers de chaque liste ci-dessus.",
    ),
    // Slices.
    (
        "No slice is proven to lose more than {margin}.",
        "Il n’est prouvé d’aucune tranche qu’elle perde plus de {margin}.",
    ),
    ("None of {n} slices is.", "D’aucune des {n} tranches."),
    (
        "{count} of {n} slices are, the worst of them {field} = {value}, between {lo} and {hi}.",
        "De {count} tranches sur {n}, la pire étant {field} = {value}, entre {lo} et {hi}.",
    ),
    ("Slice by slice", "Tranche par tranche"),
    (
        "Worst difference first; the interval holds for all slices together, p is corrected for their number (Holm)",
        "Le pire écart d’abord ; l’intervalle vaut pour toutes les tranches ensemble, p est corrigé pour leur nombre (Holm)",
    ),
    ("Slice", "Tranche"),
    ("Score", "Résultat"),
    ("Interval", "Intervalle"),
    ("more slices are in report.json", "autres tranches sont dans report.json"),
    // Lists.
    ("Better answered by {b} than by {a}", "Mieux répondu par {b} que par {a}"),
    ("Worse answered by {b} than by {a}", "Moins bien répondu par {b} que par {a}"),
    ("Not wholly right: {name}", "Pas tout à fait juste\u{a0}: {name}"),
    ("and {n} more, named in report.json", "et {n} autres, nommés dans report.json"),
    // Money.
    (
        "No candidate is both better and cheaper than {names}.",
        "Aucun candidat n’est à la fois meilleur et moins cher que {names}.",
    ),
    (" or ", " ou "),
    ("never", "jamais"),
    (
        "{value} requests a month (95 % between {lo} and {hi})",
        "{value} requêtes par mois (95 % entre {lo} et {hi})",
    ),
    ("{b} is not dearer than {a} at any volume.", "{b} n’est plus cher que {a} à aucun volume."),
    ("{b} is dearer than {a} at every volume.", "{b} est plus cher que {a} à tout volume."),
    (
        "{b} is cheaper than {a} from {volume} on.",
        "{b} est moins cher que {a} à partir de {volume}.",
    ),
    ("{b} is cheaper than {a} up to {volume}.", "{b} est moins cher que {a} jusqu’à {volume}."),
    ("no volume stated", "aucun volume indiqué"),
    ("no bound", "sans limite"),
    ("{value} ({lo} to {hi})", "{value} ({lo} à {hi})"),
    ("Break-even", "Seuil de rentabilité"),
    ("Saved in a month at the volume stated", "Économie par mois au volume indiqué"),
    ("Payback", "Retour sur investissement"),
    ("{n} months", "{n} mois"),
    (
        "Change of the running price of the first that would make both cost the same",
        "Variation du prix courant du premier qui égaliserait les coûts",
    ),
    ("Utilisation of the machines at break-even", "Occupation des machines au seuil"),
    ("never reached", "jamais atteinte"),
    (
        "What one wrong answer must cost for the dearer one to be right",
        "Ce qu’une réponse fausse doit coûter pour justifier le plus cher",
    ),
    (
        "no amount: the cheaper one is not the worse one",
        "aucun montant\u{a0}: le moins cher n’est pas le moins bon",
    ),
    ("Prompt tokens saved on each request", "Jetons d’invite économisés par requête"),
    ("{n}, worth {amount} per 1,000 requests", "{n}, soit {amount} pour 1\u{a0}000 requêtes"),
    (
        "Resamples of the requests in which the second is not dearer",
        "Rééchantillonnages des requêtes où le second n’est pas plus cher",
    ),
    ("{b} beside {a}", "{b} face à {a}"),
    // Rules.
    (
        "{judged} loses less than {margin} against {against}.",
        "{judged} perd moins de {margin} face à {against}.",
    ),
    (
        "{judged} gains more than {margin} over {against}.",
        "{judged} gagne plus de {margin} sur {against}.",
    ),
    (
        "The difference of {metric} lies between {lo} and {hi} with 95 % confidence.",
        "L’écart de {metric} se situe entre {lo} et {hi} avec 95 % de confiance.",
    ),
    ("All {n} answers of {name} are there.", "Les {n} réponses de {name} sont là."),
    (
        "Of {name} {failed} of {n} answers failed; the first because of: {reason}.",
        "De {name}, {failed} réponses sur {n} manquent ; la première à cause de : {reason}.",
    ),
    ("Every example is answered by {name}.", "{name} répond à chaque exemple."),
    (
        "Failed answers of {name} count as wrong.",
        "Les réponses manquantes de {name} comptent comme fausses.",
    ),
    (
        "1,000 requests to {name} cost at most {most}.",
        "1\u{a0}000 requêtes à {name} coûtent au plus {most}.",
    ),
    ("They cost {amount}.", "Elles coûtent {amount}."),
    (
        "1,000 requests to {name} cost {amount}, more than the {most} allowed.",
        "1\u{a0}000 requêtes à {name} coûtent {amount}, plus que les {most} permis.",
    ),
    ("What {name} costs is not stated.", "Le coût de {name} n’est pas indiqué."),
    (
        "{judged} is cheaper than {against} at the volume stated.",
        "{judged} est moins cher que {against} au volume indiqué.",
    ),
    ("The costs of both are not stated.", "Les coûts des deux ne sont pas indiqués."),
    ("{b} is not cheaper than {a} at any volume.", "{b} n’est moins cher que {a} à aucun volume."),
    (
        "At {n} requests a month {b} is cheaper than {a} in {share} of the resamples.",
        "À {n} requêtes par mois, {b} est moins cher que {a} dans {share} des rééchantillonnages.",
    ),
    ("{b} is cheaper than {a} at any volume.", "{b} est moins cher que {a} à tout volume."),
    (
        "At {n} requests a month {b} is not proven cheaper than {a}; it is from {volume} on.",
        "À {n} requêtes par mois, il n’est pas prouvé que {b} soit moins cher que {a} ; il l’est à partir de {volume}.",
    ),
    (
        "At {n} requests a month {b} is not proven cheaper than {a}; it is up to {volume}.",
        "À {n} requêtes par mois, il n’est pas prouvé que {b} soit moins cher que {a} ; il l’est jusqu’à {volume}.",
    ),
    (
        "No volume is stated; {b} is cheaper from {volume} on.",
        "Aucun volume n’est indiqué ; {b} est moins cher à partir de {volume}.",
    ),
    (
        "No volume is stated; {b} is cheaper up to {volume}.",
        "Aucun volume n’est indiqué ; {b} est moins cher jusqu’à {volume}.",
    ),
    (
        "A judge's opinion is shown with what speaks against it; it decides nothing.",
        "L’avis d’un juge est montré avec ce qui parle contre lui ; il ne décide de rien.",
    ),
    (
        "{judge} prefers {b} to {a} in {rate} of the examples, ties half (95 % between {lo} and {hi}); the order changed its mind in {flips}.",
        "{judge} préfère {b} à {a} dans {rate} des exemples, égalités pour moitié (95 % entre {lo} et {hi}) ; l’ordre l’a fait changer d’avis dans {flips}.",
    ),
    ("With answers of the same length: {rate}.", "À longueur égale : {rate}."),
    (
        "Agreement with people on {n} examples: {share}, kappa {kappa}.",
        "Accord avec des personnes sur {n} exemples : {share}, kappa {kappa}.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_put_in_their_places_and_not_read_again() {
        let text = Language::En.say("{b} beside {a}", &[("a", &"{b}"), ("b", &"x")]);
        assert_eq!(text, "x beside {b}");
        assert_eq!(Language::Fr.say("{b} beside {a}", &[("a", &1), ("b", &2)]), "2 face à 1");
        assert_eq!(Language::Fr.t("no such text"), "no such text");
    }

    /// Every text that is meant to be translated is, with the same places in it.
    #[test]
    fn nothing_is_left_in_english() {
        let sources = [
            include_str!("../templates/report.html"),
            include_str!("report/html.rs"),
            include_str!("report/money.rs"),
            include_str!("proof/rules.rs"),
        ];
        let mut texts = 0;
        for source in sources {
            let source = source.replace("\\\"", "\u{1}");
            for start in [".t(\"", ".say(\"", ".say(\n"] {
                for rest in source.split(start).skip(1) {
                    let rest = match start.ends_with('\n') {
                        true => rest.trim_start().trim_start_matches('"'),
                        false => rest,
                    };
                    let text = rest.split('"').next().unwrap().replace("\\u{a0}", "\u{a0}");
                    assert!(FRENCH.iter().any(|(en, _)| *en == text), "not in French: {text:?}");
                    texts += 1;
                }
            }
        }
        assert!(texts > 100, "{texts}");
        let places = |text: &str| {
            let mut found: Vec<String> =
                text.split('{').skip(1).map(|r| r.split('}').next().unwrap().to_owned()).collect();
            found.sort_unstable();
            found
        };
        for (en, fr) in FRENCH {
            assert_eq!(places(en), places(fr), "{en}");
        }
    }
}
