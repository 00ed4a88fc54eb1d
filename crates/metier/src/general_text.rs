//! Text that has nothing to do with any task, to compare models on: what was exported with what was to
//! be exported, and what was trained with its base.

use ::data::{Document, ReadOptions};
use ::train::{GeneralText, Guard, Piece};
use anyhow::{Context, Result, bail};
use std::path::Path;
use text::{ChatTemplate, Conversation, Message, Tokenizer};

/// What the bundled text is called where its numbers are.
pub(crate) const BUNDLED: &str = "the bundled text";

/// Tokens of a user's own text that are read before and after a training: a fraction of a step of
/// ordinary size, and enough pieces for an interval.
const GUARD_TOKENS: usize = 2048;
/// Plain text is cut into pieces of so many tokens, which the interval takes as independent.
const PIECE_TOKENS: usize = 128;

/// Conversations of both languages of the bundled base, in plain words, each up to where an answer is
/// asked for.
const CONVERSATIONS: &[&[&str]] = &[
    &[
        "Hello! Which days are you open this week?",
        "We are open from Monday to Friday, nine to five, and on Saturday until noon.",
        "Thank you. Can I come by on Saturday at eleven with an old washing machine?",
    ],
    &[
        "Bonjour, ma chaudière fuit depuis ce matin et il y a de l'eau dans la cave.",
        "Coupez d'abord l'arrivée d'eau, puis l'électricité de la cave. Un technicien peut passer à 14 h 30.",
        "C'est fait. Faut-il aussi fermer le gaz ?",
    ],
    &[
        "Write the order as JSON: two pumps, type P-40, to be delivered on 3 March.",
        "{\"item\": \"pump\", \"type\": \"P-40\", \"count\": 2, \"date\": \"03-03\"}",
        "And one more filter, type F-7.",
    ],
    &[
        "Summarise in one sentence: The lift on the second floor has been out of order since Tuesday. A \
       spare part was ordered and should arrive on Friday; until then the stairs at the back are open.",
    ],
    &[
        "Why is the sky blue?",
        "Sunlight is made of many colours. The air scatters blue light far more than red light, so blue \
         reaches our eyes from every direction.",
        "And why is it red in the evening?",
    ],
    &[
        "Quelle est la capitale du Portugal, et quelle langue y parle-t-on ?",
        "La capitale est Lisbonne, au bord du Tage. On y parle le portugais.",
        "Combien d'habitants le pays compte-t-il ?",
    ],
    &[
        "How do I cook rice without it sticking?",
        "Rinse it until the water is clear, use one and a half cups of water for a cup of rice, bring it to \
         the boil, cover it and let it stand on the lowest heat for twelve minutes.",
        "Should I add salt before or after?",
    ],
    &[
        "What is 17 plus 25, and what is half of that?",
        "17 plus 25 is 42, and half of 42 is 21.",
        "Now take away 6 and multiply by 3.",
    ],
    &[
        "Peux-tu écrire une courte histoire sur un chat et un bateau ?",
        "Un chat vivait dans un petit port. Chaque matin il montait sur le bateau du vieux pêcheur, et le \
         soir il rentrait avec un poisson. Un jour, le vent se leva.",
        "Et que se passa-t-il ensuite ?",
    ],
    &[
        "Translate into French: The train leaves at seven, and we have to be at the station early.",
        "Le train part à sept heures, et nous devons être à la gare en avance.",
        "And now: She has lost her umbrella.",
    ],
    &[
        "Name three planets that have rings.",
        "Saturn, Jupiter and Uranus have rings. Saturn's are the brightest and the easiest to see.",
        "What are they made of?",
    ],
    &[
        "Write a polite letter to a neighbour whose dog barks at night.",
        "Dear neighbour, I hope you are well. Your dog has been barking after midnight this week, and we \
         find it hard to sleep. Could you keep him inside at night? Thank you very much for your help.",
        "Make it shorter, please.",
    ],
    &[
        "Comment fonctionne une éolienne ?",
        "Le vent fait tourner les pales, qui entraînent un générateur. Celui-ci transforme le mouvement en \
         électricité, que l'on envoie ensuite sur le réseau.",
        "Que fait-on quand il n'y a pas de vent ?",
    ],
    &[
        "Write a function in Python that returns the larger of two numbers.",
        "def larger(a, b):\n    return a if a > b else b",
        "Change it so that it takes a list.",
    ],
    &[
        "Who wrote the plays about Hamlet and Macbeth, and when did he live?",
        "William Shakespeare wrote both. He was born in 1564 and died in 1616.",
        "Which of the two is the longer play?",
    ],
    &[
        "Donne-moi trois conseils pour mieux dormir.",
        "Couchez-vous à la même heure chaque soir, évitez les écrans avant de dormir et gardez la chambre \
         fraîche et sombre.",
        "Le café de l'après-midi pose-t-il problème ?",
    ],
];

/// The bundled text in a chat template: token ids of each conversation, of which every token counts, cut
/// to `longest`.
pub(crate) fn bundled(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    longest: usize,
) -> Result<Vec<Vec<u32>>> {
    let template = template.clone().at(::train::TRAINING_CLOCK);
    let rendered = CONVERSATIONS.iter().map(|turns| {
        let roles = ["user", "assistant"].into_iter().cycle();
        let messages = roles.zip(*turns).map(|(role, text)| Message::new(role, *text));
        let conversation = Conversation::new(messages.collect());
        let mut ids = template.render(tokenizer, &conversation, true)?.ids;
        // A tiny context still reads the beginning.
        ids.truncate(longest);
        Ok(ids)
    });
    rendered.collect()
}

/// What a training is to tell forgetting by.
///
/// Of the bundled text nothing is an error: a template that cannot render it leaves it out, with a
/// warning.
pub(crate) fn load(
    guard: &Guard,
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    longest: usize,
) -> Result<GeneralText> {
    let pieces = match guard {
        Guard::Off => return Ok(GeneralText::default()),
        Guard::Bundled => match bundled(template, tokenizer, longest) {
            Ok(rows) => rows.into_iter().map(|ids| (vec![true; ids.len()], ids)).collect(),
            Err(error) => {
                eprintln!(
                    "warning: {BUNDLED} cannot be written in this model's chat template, so nothing will tell \
                     what was forgotten: {error:#}\nhint: [train] guard = \"text.txt\" names another one"
                );
                return Ok(GeneralText::default());
            }
        },
        Guard::Data(path) if ::data::is_text(path) => {
            windows(&::data::read_text(path)?, tokenizer, longest.min(PIECE_TOKENS))?
        }
        Guard::Data(path) => answers(path, template, tokenizer, longest.min(GUARD_TOKENS))?,
    };
    let what = match guard {
        Guard::Data(path) => path.display().to_string(),
        _ => BUNDLED.to_owned(),
    };
    let pieces: Vec<Piece> = pieces
        .into_iter()
        .filter(|(mask, _)| mask.iter().skip(1).any(|counts| *counts))
        .map(|(mask, ids)| {
            let counted = ids.iter().zip(&mask).skip(1).filter(|(_, counts)| **counts);
            let counted: Vec<u32> = counted.map(|(id, _)| *id).collect();
            let bytes = tokenizer.decode(&counted)?.len();
            Ok(Piece { ids, mask, bytes })
        })
        .collect::<Result<_>>()?;
    if pieces.is_empty() {
        bail!(
            "{what}: nothing to tell forgetting by: no text, or every row is longer than {longest} tokens or \
             without an answer\nhint: [train] guard = false leaves it out"
        );
    }
    Ok(GeneralText { what, pieces })
}

/// Mask and ids of one piece.
type Counted = (Vec<bool>, Vec<u32>);

/// The beginnings of all documents, as much of each.
fn windows(documents: &[Document], tokenizer: &Tokenizer, piece: usize) -> Result<Vec<Counted>> {
    let share = (GUARD_TOKENS / documents.len().max(1)).max(1);
    let begin = tokenizer.bos_id().filter(|_| tokenizer.add_bos());
    let mut pieces: Vec<Counted> = Vec::new();
    let mut tokens = 0;
    for document in documents {
        // A token has one byte at least in all but odd vocabularies: far more text than is needed.
        let enough = document.text.floor_char_boundary(share.saturating_mul(64));
        let mut ids =
            tokenizer.encode(&document.text[..enough]).with_context(|| document.id.clone())?;
        ids.truncate(share);
        for window in ids.chunks(piece.saturating_sub(1).max(1)) {
            if tokens >= GUARD_TOKENS {
                return Ok(pieces);
            }
            let ids: Vec<u32> = begin.into_iter().chain(window.iter().copied()).collect();
            tokens += ids.len();
            pieces.push((vec![true; ids.len()], ids));
        }
    }
    Ok(pieces)
}

/// The first rows, of which the answers count.
fn answers(
    path: &Path,
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    longest: usize,
) -> Result<Vec<Counted>> {
    let template = template.clone().at(::train::TRAINING_CLOCK);
    let mut pieces: Vec<Counted> = Vec::new();
    let mut tokens = 0;
    for example in ::data::read(path, &ReadOptions::default())? {
        let rendered = template
            .render(tokenizer, &example.conversation, false)
            .with_context(|| example.id.clone())?;
        if rendered.ids.len() > longest {
            continue;
        }
        if tokens > 0 && tokens + rendered.ids.len() > GUARD_TOKENS {
            break;
        }
        tokens += rendered.ids.len();
        pieces.push((rendered.mask, rendered.ids));
    }
    Ok(pieces)
}
