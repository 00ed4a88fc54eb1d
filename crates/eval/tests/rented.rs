//! A rented model that behaves badly, as a local stand-in that speaks the real protocol over a real
//! socket: nothing that was recorded is lost, nothing is paid for twice, failed rows stay.

use eval::{
    Answer, Candidate, CandidateResult, Endpoint, EvalError, EvalItem, Finding, Graded, Judge, Key,
    Language, Preference, ProofFacts, ProofPlan, Protocol, Record, RecordedCandidate,
    RentedCandidate, Repeated, Rubric, Verdict, evaluate, metrics_by_name, prove,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use text::{Conversation, Message};

const SECRET: &str = "sk-very-secret-0123456789";

/// What the stand-in does with a request.
#[derive(Clone)]
enum Reply {
    /// Status, further headers, body.
    Full(u16, &'static str, String),
    /// Takes the request and closes the connection.
    HangUp,
    /// Begins an answer and closes the connection.
    BreakOff,
    /// Takes the request and never answers.
    Silence,
}

fn answer(text: &str) -> Reply {
    let body = json!({"model": "m-1", "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}});
    Reply::Full(200, "", body.to_string())
}

struct Seen {
    head: String,
    body: Value,
}

/// A server on a free port; `reply` gets the number of the request, from 0, and the request.
struct StandIn {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl StandIn {
    fn start(reply: impl Fn(usize, &Value) -> Reply + Send + Sync + 'static) -> StandIn {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (all, reply) = (Arc::clone(&seen), Arc::new(reply));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (all, reply) = (Arc::clone(&all), Arc::clone(&reply));
                std::thread::spawn(move || serve(stream, &all, &*reply));
            }
        });
        StandIn { url, seen }
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn endpoint(&self) -> Endpoint {
        let key = Key::new("TEST_KEY", SECRET.to_owned()).unwrap();
        Endpoint {
            first_pause: Duration::from_millis(1),
            timeout: Duration::from_secs(20),
            attempts: 3,
            concurrency: 2,
            ..Endpoint::new(&self.url, Protocol::Openai, "m", Some(key))
        }
    }
}

fn serve(stream: TcpStream, all: &Mutex<Vec<Seen>>, reply: &dyn Fn(usize, &Value) -> Reply) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let length = head
        .to_lowercase()
        .split("content-length: ")
        .nth(1)
        .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let number = {
        let mut all = all.lock().unwrap();
        all.push(Seen { head, body: body.clone() });
        all.len() - 1
    };
    let mut stream = stream;
    let text = match reply(number, &body) {
        Reply::Full(status, headers, body) => format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ),
        Reply::HangUp => return,
        Reply::BreakOff => "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"choices\"".to_owned(),
        Reply::Silence => {
            // Until the client goes away.
            let _ = reader.read(&mut [0; 1]);
            return;
        }
    };
    let _ = stream.write_all(text.as_bytes());
}

fn items(n: usize) -> Vec<EvalItem> {
    let item = |i: usize| {
        let turns =
            vec![Message::new("user", format!("q{i}")), Message::new("assistant", format!("a{i}"))];
        EvalItem::new(format!("row-{i}"), Conversation::new(turns)).unwrap()
    };
    (0..n).map(item).collect()
}

/// The right answer to the question in a request.
fn right(body: &Value) -> String {
    let asked = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
    asked.replace('q', "a")
}

fn ask(endpoint: Endpoint, path: &Path, items: &[EvalItem]) -> Result<Vec<Answer>, EvalError> {
    RentedCandidate::new("rented", endpoint, path.to_owned())?.answer(items, &mut |_| ())
}

fn records(path: &Path) -> Vec<Record> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn answers_and_their_usage_are_recorded_and_a_rerun_costs_nothing() {
    let server = StandIn::start(|_, body| answer(&right(body)));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records/rented.jsonl");
    let items = items(7);
    let first = ask(server.endpoint(), &path, &items).unwrap();
    assert_eq!(first[3].text, "a3");
    assert_eq!((first[3].prompt_tokens, first[3].cached_tokens), (Some(11), Some(4)));
    assert_eq!((first[3].answer_tokens, first[3].stopped), (Some(3), Some(true)));
    assert!(first[3].seconds.is_some());
    assert_eq!(server.count(), 7);
    let lines = records(&path);
    assert_eq!(lines.len(), 7);
    assert!(lines.iter().all(|r| r.usage.as_ref().is_some_and(|u| u["prompt_tokens"] == 11)));
    assert_eq!(ask(server.endpoint(), &path, &items).unwrap(), first);
    assert_eq!(server.count(), 7, "the rerun asked again");
    // Another question, or the same with another setting, is not in the records.
    let mut longer = server.endpoint();
    longer.max_tokens = 9;
    ask(longer, &path, &items[..1]).unwrap();
    assert_eq!(server.count(), 8);
    let seen = server.seen.lock().unwrap();
    assert!(seen[0].head.starts_with("POST /v1/chat/completions"), "{}", seen[0].head);
    assert!(seen[0].head.to_lowercase().contains(&format!("authorization: bearer {SECRET}")));
    assert_eq!(seen[7].body["max_tokens"], 9);
}

#[test]
fn the_same_question_is_paid_for_once() {
    let server = StandIn::start(|_, body| answer(&right(body)));
    let dir = tempfile::tempdir().unwrap();
    let mut items = items(2);
    items[1].conversation = items[0].conversation.clone();
    let answers = ask(server.endpoint(), &dir.path().join("r.jsonl"), &items).unwrap();
    assert_eq!((server.count(), &answers[0]), (1, &answers[1]));
}

#[test]
fn a_throttling_endpoint_is_waited_for() {
    // Every request is refused once, with and without a time to wait.
    let server = StandIn::start(|number, body| match number % 2 {
        0 if number % 4 == 0 => {
            Reply::Full(429, "Retry-After: 0\r\n", "{\"error\": \"slow down\"}".into())
        }
        0 => Reply::Full(503, "", "busy".into()),
        _ => answer(&right(body)),
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let mut endpoint = server.endpoint();
    endpoint.concurrency = 1;
    let answers = ask(endpoint, &path, &items(6)).unwrap();
    assert!(answers.iter().enumerate().all(|(i, a)| a.text == format!("a{i}")), "{answers:?}");
    assert_eq!((server.count(), records(&path).len()), (12, 6));
}

#[test]
fn what_may_have_been_paid_for_is_never_asked_twice() {
    let server = StandIn::start(|_, body| match right(body).as_str() {
        "a0" => Reply::HangUp,
        "a1" => Reply::BreakOff,
        "a2" => Reply::Silence,
        "a3" => Reply::Full(200, "", "<html>garbage</html>".into()),
        "a4" => Reply::Full(200, "", "{\"choices\": []}".into()),
        "a5" => Reply::Full(400, "", "{\"error\": \"too long\"}".into()),
        text => answer(text),
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let mut endpoint = server.endpoint();
    endpoint.timeout = Duration::from_millis(500);
    let answers = ask(endpoint.clone(), &path, &items(8)).unwrap();
    let said: Vec<&str> = answers.iter().filter_map(|a| a.error.as_deref()).collect();
    assert_eq!(said.len(), 6, "{said:?}");
    for (error, expected) in said.iter().zip([
        "after the request was sent",
        "broke off",
        "",
        "garbage",
        "no choices",
        "too long",
    ]) {
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
    assert_eq!((answers[6].text.as_str(), answers[7].text.as_str()), ("a6", "a7"));
    assert_eq!(server.count(), 8);
    // The rerun keeps the failed rows as they are, and asks nothing.
    assert_eq!(ask(endpoint.clone(), &path, &items(8)).unwrap(), answers);
    assert_eq!(server.count(), 8);
    // Knowingly asked again, and recorded again.
    endpoint.retry_failed = true;
    ask(endpoint, &path, &items(8)).unwrap();
    assert_eq!((server.count(), records(&path).len()), (14, 14));
}

#[test]
fn failed_rows_count_as_wrong_and_stay_in_the_result() {
    let server = StandIn::start(|_, body| match right(body).as_str() {
        "a1" => Reply::Full(200, "", "garbage".into()),
        text => answer(text),
    });
    let dir = tempfile::tempdir().unwrap();
    let candidate =
        RentedCandidate::new("rented", server.endpoint(), dir.path().join("r.jsonl")).unwrap();
    let mut candidates: [Box<dyn Candidate>; 1] = [Box::new(candidate)];
    let metrics = metrics_by_name(&["exact_match"]).unwrap();
    let result = evaluate(&mut candidates, items(4), metrics, &mut |_| ()).unwrap();
    assert_eq!(result.candidates[0].scores[0], [1.0, 0.0, 1.0, 1.0]);
    assert_eq!(result.candidates[0].failed(), 1);
}

#[test]
fn an_answer_that_changes_midway_does_not_change_what_was_recorded() {
    let server = StandIn::start(|number, body| match number {
        0..4 => answer(&right(body)),
        _ => answer("something else"),
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let first = ask(server.endpoint(), &path, &items(4)).unwrap();
    let all = ask(server.endpoint(), &path, &items(6)).unwrap();
    assert_eq!(all[..4], first[..]);
    assert_eq!((all[5].text.as_str(), server.count()), ("something else", 6));
}

#[test]
fn an_endpoint_that_goes_away_ends_the_run_and_the_next_one_goes_on() {
    let server = StandIn::start(|number, body| match number {
        0..5 => answer(&right(body)),
        5..400 => Reply::Full(500, "", "down".into()),
        _ => answer(&right(body)),
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let mut endpoint = server.endpoint();
    (endpoint.concurrency, endpoint.attempts) = (1, 1);
    let error = ask(endpoint.clone(), &path, &items(100)).unwrap_err().to_string();
    assert!(error.contains("20 requests in a row") && error.contains("hint"), "{error}");
    assert_eq!(server.count(), 25);
    let again = ask(endpoint.clone(), &path, &items(100)).unwrap_err().to_string();
    assert!(again.contains("in a row"), "{again}");
    assert_eq!(server.count(), 45, "what was answered was asked again");
    // A few that are not taken are failed rows, and the next run asks for them anew.
    let few = ask(endpoint, &path, &items(8)).unwrap();
    assert_eq!(few.iter().filter(|a| a.error.is_some()).count(), 3);
    assert!(few[7].error.as_ref().unwrap().contains("status 500: down"));
}

#[test]
fn a_refused_key_ends_the_run_and_is_shown_nowhere() {
    let server = StandIn::start(|_, _| {
        Reply::Full(401, "", format!("{{\"error\": \"Incorrect API key provided: {SECRET}\"}}"))
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    let mut endpoint = server.endpoint();
    endpoint.concurrency = 1;
    let shown = format!("{endpoint:?}");
    let error = ask(endpoint, &path, &items(50)).unwrap_err();
    for text in [format!("{error} {error:?}"), shown, std::fs::read_to_string(&path).unwrap()] {
        assert!(!text.contains(SECRET), "{text}");
    }
    assert!(
        error.to_string().contains("status 401") && error.to_string().contains("[key]"),
        "{error}"
    );
    assert_eq!(server.count(), 1);
}

#[test]
fn a_redirect_does_not_carry_the_key_away() {
    let other = StandIn::start(|_, _| answer("stolen"));
    let location: &'static str =
        Box::leak(format!("Location: {}/chat/completions\r\n", other.url).into_boxed_str());
    let server = StandIn::start(move |_, _| Reply::Full(307, location, String::new()));
    let dir = tempfile::tempdir().unwrap();
    let error = ask(server.endpoint(), &dir.path().join("r.jsonl"), &items(2)).unwrap_err();
    assert!(error.to_string().contains("status 307"), "{error}");
    assert_eq!(other.count(), 0);
}

#[test]
fn a_line_cut_off_by_a_crash_is_asked_again_and_other_damage_is_named() {
    let server = StandIn::start(|_, body| answer(&right(body)));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.jsonl");
    ask(server.endpoint(), &path, &items(3)).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 40]).unwrap();
    let answers = ask(server.endpoint(), &path, &items(3)).unwrap();
    assert!(answers.iter().all(|a| a.error.is_none()));
    assert_eq!((server.count(), records(&path).len()), (4, 3));
    let mut damaged = whole;
    damaged[2] = b'\\';
    std::fs::write(&path, damaged).unwrap();
    let error = ask(server.endpoint(), &path, &items(3)).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("r.jsonl"), "{error}");
    assert_eq!(server.count(), 4);
}

#[test]
fn anthropics_shape_is_spoken_too() {
    let server = StandIn::start(|_, body| {
        let body = json!({"model": "c", "content": [{"type": "text", "text": right(body)}], "stop_reason": "end_turn",
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 1}});
        Reply::Full(200, "", body.to_string())
    });
    let dir = tempfile::tempdir().unwrap();
    let endpoint = Endpoint { protocol: Protocol::Anthropic, ..server.endpoint() };
    let answers = ask(endpoint, &dir.path().join("r.jsonl"), &items(2)).unwrap();
    assert_eq!((answers[1].text.as_str(), answers[1].prompt_tokens), ("a1", Some(7)));
    let seen = server.seen.lock().unwrap();
    let head = seen[0].head.to_lowercase();
    assert!(
        head.starts_with("post /v1/messages") && head.contains(&format!("x-api-key: {SECRET}"))
    );
    assert!(head.contains("anthropic-version"));
}

#[test]
fn what_makes_no_sense_or_would_show_the_key_is_refused() {
    let key = || Some(Key::new("TEST_KEY", SECRET.to_owned()).unwrap());
    let refused = |endpoint: Endpoint| {
        RentedCandidate::new("r", endpoint, "r.jsonl".into()).unwrap_err().to_string()
    };
    let at = |url: &str| Endpoint::new(url, Protocol::Openai, "m", key());
    assert!(refused(at("http://models.example/v1")).contains("in the clear"));
    assert!(refused(at("http://localhost.example/v1")).contains("in the clear"));
    assert!(refused(at("ftp://x")).contains("https://"));
    let many = Endpoint { concurrency: 65, ..at("https://x.example") };
    assert!(refused(many).contains("1 to 64"));
    assert!(RentedCandidate::new("r", at("http://localhost:8000/v1"), "r".into()).is_ok());
    assert!(Key::new("NO_KEY", String::new()).unwrap_err().to_string().contains("NO_KEY"));
    assert!(Key::new("NO_KEY", "a\nb".into()).is_err());
}

/// A judge that prefers what holds the reference, or else whichever stands first.
#[test]
fn a_judge_is_asked_in_both_orders_with_a_grammar_and_validated() {
    let server = StandIn::start(|_, body| {
        let text = body["messages"][1]["content"].as_str().unwrap();
        let parts: Vec<&str> = text.split("\n\nAnswer ").collect();
        let reference =
            parts[0].split("Reference answer:\n```\n").nth(1).unwrap().split('\n').next().unwrap();
        let right = |part: &str| part.contains(&format!("\n{reference}\n"));
        let better = match (right(parts[1]), right(parts[2])) {
            (true, false) => "1",
            (false, true) => "2",
            (true, true) => "tie",
            (false, false) => "1",
        };
        answer(&format!("{{\"better\": \"{better}\"}}"))
    });
    let dir = tempfile::tempdir().unwrap();
    let items = items(120);
    // a is right in every second example, b in all but every fifth.
    let given = |name: &str, wrong: fn(usize) -> bool| CandidateResult {
        name: name.into(),
        kind: "given".into(),
        answers: (0..items.len())
            .map(|i| Answer {
                text: if wrong(i) { format!("wrong {name}") } else { items[i].reference.clone() },
                ..Answer::default()
            })
            .collect(),
        scores: Vec::new(),
        clusters: Vec::new(),
        seconds: 0.0,
    };
    let (a, b) = (given("m-small", |i| i % 2 == 1), given("ours", |i| i % 5 == 0));
    let judge = Judge {
        endpoint: server.endpoint(),
        criteria: "The label is right.".into(),
        records: dir.path().join("judge.jsonl"),
    };
    let labels = items.iter().take(110).enumerate().map(|(i, item)| {
        let better = match (i % 2 == 1, i % 5 == 0) {
            (true, false) => Preference::B,
            (false, true) => Preference::A,
            _ => Preference::Tie,
        };
        (item.id.clone(), better)
    });
    let games = judge.pairwise(&items, &a, &b, &labels.collect(), &mut |_| ()).unwrap();
    let found = games.judgement(&items, &a, &b, Language::En).unwrap();
    // Of 10: five are won or lost by right against wrong (4 and 1), one is wrong twice and follows the
    // place, four are right twice.
    assert!((found.win_rate - (48.0 + 0.5 * 60.0) / 120.0).abs() < 1e-12, "{}", found.win_rate);
    assert!((found.position_flips - 0.1).abs() < 1e-12 && found.failed == 0);
    assert!(found.ci95.contains(found.win_rate) && found.length_controlled.is_some());
    let agreement = found.agreement.unwrap();
    assert_eq!((agreement.n, agreement.agreement), (110, 1.0));
    assert!(
        found.warnings.iter().any(|w| w.contains("same family as m-small")),
        "{:?}",
        found.warnings
    );
    assert!(!found.warnings.iter().any(|w| w.contains("not validated")));
    // Where both answers are the same, both orders are one question.
    assert_eq!(server.count(), 240 - 48);
    let body = server.seen.lock().unwrap()[0].body.clone();
    assert_eq!(body["response_format"]["json_schema"]["schema"]["required"], json!(["better"]));
    let few = judge.pairwise(&items, &a, &b, &Default::default(), &mut |_| ()).unwrap();
    let few = few.judgement(&items, &a, &b, Language::En).unwrap();
    assert!(games.judgement(&items[..9], &a, &b, Language::En).is_err());
    assert_eq!(server.count(), 192, "the rerun asked again");
    assert!(few.agreement.is_none() && few.warnings.iter().any(|w| w.contains("not validated")));
}

#[test]
fn a_rubric_gives_grades_which_people_confirm() {
    // Right answers get 4, wrong ones 2; of one it says nothing that can be read.
    let server = StandIn::start(|_, body| {
        let text = body["messages"][1]["content"].as_str().unwrap().to_owned();
        let (_, said) = text.split_once("Answer:\n```\n").unwrap();
        answer(match said {
            _ if said.starts_with("a1\n") => "five, I think",
            _ if said.starts_with("wrong") => "{\"grade\": 2}",
            _ => "{\"grade\": 4}",
        })
    });
    let dir = tempfile::tempdir().unwrap();
    let items = items(4);
    let records = dir.path().join("judge.jsonl");
    let judge = Judge { endpoint: server.endpoint(), criteria: "It is right.".into(), records };
    let metrics = metrics_by_name(&["rubric"]).unwrap();
    let grade = |name: &str, answers: Vec<Answer>| {
        let path = dir.path().join("given.jsonl");
        let line = |(item, answer): (&EvalItem, &Answer)| {
            json!({"id": item.id, "answer": answer.text, "error": answer.error}).to_string()
        };
        let lines: Vec<String> = items.iter().zip(&answers).map(line).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let given = Box::new(RecordedCandidate::read(name, &path).unwrap());
        let mut seen = Vec::new();
        let mut note = |done, of| seen.push((done, of));
        let mut graded: [Box<dyn Candidate>; 1] = [Box::new(Graded::new(given, &judge, &mut note))];
        let result = evaluate(&mut graded, items.clone(), metrics.clone(), &mut |_| ()).unwrap();
        drop(graded);
        assert!(
            seen.iter().all(|(_, of)| *of == answers.iter().filter(|a| a.error.is_none()).count())
        );
        result
    };
    let said = |text: &str| Answer { text: text.to_owned(), ..Answer::default() };
    let right: Vec<Answer> = items.iter().map(|item| said(&item.reference)).collect();
    let wrong = vec![said("wrong"), right[1].clone(), Answer::failed("timeout"), right[3].clone()];
    let (mut a, b) = (grade("m-small", wrong), grade("ours", right));
    assert_eq!(a.candidates[0].scores[0], [0.25, 0.0, 0.0, 0.75]);
    assert_eq!(b.candidates[0].scores[0], [0.75, 0.0, 0.75, 0.75]);
    // Two answers and the unreadable one are the same for both, so they are asked once.
    assert_eq!(server.count(), 5);
    // What is recorded is scored again without the judge.
    let path = dir.path().join("answers.jsonl");
    b.write_answers(&b.candidates[0], &path).unwrap();
    let back = Box::new(RecordedCandidate::read("ours", &path).unwrap());
    let again = evaluate(&mut [back], items.clone(), metrics.clone(), &mut |_| ()).unwrap();
    assert_eq!(again.candidates[0].scores, b.candidates[0].scores);
    let other = RecordedCandidate::read("ours", &dir.path().join("given.jsonl")).unwrap();
    let error = evaluate(&mut [Box::new(other)], items.clone(), metrics, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("[prove.rubric]"), "{error}");

    a.candidates.extend(b.candidates);
    let labels = [("row-0", Preference::B), ("row-3", Preference::Tie), ("none", Preference::A)];
    let labels = labels.map(|(id, better)| (id.to_owned(), better)).into_iter().collect();
    let rubric = Rubric {
        judge: "m-judge".into(),
        criteria: "It is right.".into(),
        labels: [("ours".to_owned(), labels)].into_iter().collect(),
    };
    let mut plan = ProofPlan { rubric: Some(rubric), ..plan("rubric", "m-small", "ours") };
    let report = prove(&plan, ProofFacts::default(), &a).unwrap();
    let [grades] = &report.grades[..] else { panic!("{:?}", report.grades) };
    assert_eq!((grades.unreadable, grades.agreement.unwrap().n), ([1, 1], 2));
    assert_eq!(grades.agreement.unwrap().agreement, 1.0);
    let rule = report.rules.iter().find(|rule| rule.name == "grades").unwrap();
    for said in ["not validated: 2", "same family as m-small", "Of ours 1 grades", "It is right."] {
        assert!(rule.evidence.contains(said), "{}", rule.evidence);
    }
    // Nothing is proven against answers whose grades are not known.
    assert_eq!((rule.finding, report.verdict), (Finding::Open, Verdict::NotProven));
    plan.language = Language::Fr;
    let french = prove(&plan, ProofFacts::default(), &a).unwrap();
    let rule = french.rules.iter().find(|rule| rule.name == "grades").unwrap();
    assert!(rule.evidence.contains("n’est pas validé") && rule.asks.starts_with("Les notes"));
}

/// A plan that judges `judged` by a metric.
fn plan(metric: &str, against: &str, judged: &str) -> ProofPlan {
    serde_json::from_value(json!({
        "metrics": [metric], "metric": metric, "judged": judged, "against": against, "margin": 0.0,
        "max_cost_per_1000": null, "must_be_cheaper": false, "least_slice": 20, "slice_margin": null,
        "economics": null,
    }))
    .unwrap()
}

#[test]
fn each_draw_of_a_question_is_paid_for_and_kept() {
    let sent = std::sync::atomic::AtomicUsize::new(0);
    let server = StandIn::start(move |_, _| {
        let n = sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        answer(&format!("draw {n}"))
    });
    let dir = tempfile::tempdir().unwrap();
    let items = items(3);
    let draws = || {
        let draw = |draw| {
            let endpoint = Endpoint { draw, ..server.endpoint() };
            let path = dir.path().join("rented.jsonl");
            Box::new(RentedCandidate::new("rented", endpoint, path).unwrap()) as Box<dyn Candidate>
        };
        Repeated::new(draw(0), vec![draw(1), draw(2)]).answer(&items, &mut |_| ()).unwrap()
    };
    let first = draws();
    assert_eq!(server.count(), 9);
    let texts: std::collections::HashSet<&str> =
        first.iter().flat_map(Answer::all).map(|answer| answer.text.as_str()).collect();
    assert_eq!(texts.len(), 9);
    assert_eq!(draws(), first, "the rerun gave other answers");
    assert_eq!(server.count(), 9, "the rerun asked again");
}
