//! Task files that cannot be honoured are refused by the name of what is wrong. That those that can give
//! the harness's numbers is tested in `metier` (tests/lm_eval_tasks.rs), which has a model.

use eval::Task;

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("d.jsonl"), "{\"q\": \"a\", \"l\": 0}\n").unwrap();
    let good = "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: d.jsonl}}\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: [a, b]\ndoc_to_target: l\n";
    let read = |text: &str| {
        let path = dir.path().join("t.yaml");
        std::fs::write(&path, text).unwrap();
        Task::read(&path, None, None)
    };
    let task = read(good).unwrap();
    assert_eq!((task.name(), task.len(), task.is_empty()), ("t", 1, false));
    for (change, said) in [
        ("colour: red\n", "colour: this key is not supported"),
        ("repeats: 3\n", "repeats: found 3"),
        ("process_docs: code\n", "process_docs: found code"),
        ("num_fewshot: 2\n", "1 are there"),
        ("num_fewshot: x\n", "num_fewshot: found \"x\""),
        ("fewshot_config: {sampler: balanced}\n", "fewshot_config.sampler: found \"balanced\""),
        ("fewshot_config: {colour: 1}\n", "fewshot_config.colour: this key"),
        ("metric_list: [{metric: f2}]\n", "metric_list: found \"f2\""),
        ("metric_list: [{metric: acc, aggregation: median}]\n", "aggregation: found \"median\""),
        ("metric_list: [{metric: acc, colour: 1}]\n", "acc: the key colour"),
        ("filter_list: [{name: n, filter: [{function: regex}]}]\n", "filter_list: found a filter"),
        ("generation_kwargs: {do_sample: true, temperature: 1}\n", "do_sample: found sampling"),
        ("generation_kwargs: {num_beams: 2}\n", "generation_kwargs.num_beams: this key"),
        ("description: !function f.g\n", "line 9: found a Python function"),
        ("description: '{{nothing}}'\n", "row 0 of the data (counted from 0): undefined"),
        ("include: t.yaml\n", "include one another"),
    ] {
        let error = read(&format!("{good}{change}")).err().map(|e| e.to_string());
        let error = error.unwrap_or_else(|| panic!("{change} is accepted"));
        assert!(error.contains(said) && error.contains("t.yaml"), "{change}: {error}");
    }
    let hub = read(&good.replace("dataset_path: json", "dataset_path: squad")).err().unwrap();
    assert!(hub.to_string().contains("nothing is fetched"), "{hub}");
    let missing = read(&good.replace("d.jsonl", "e.jsonl")).err().unwrap().to_string();
    assert!(missing.contains("e.jsonl"), "{missing}");
    let wrong = read(&good.replace("doc_to_target: l", "doc_to_target: q")).map(|t| t.len());
    assert_eq!(wrong.unwrap(), 1, "the text is one of the choices");
    let none =
        read(&good.replace("[a, b]", "[x, y]").replace("doc_to_target: l", "doc_to_target: q"));
    assert!(none.err().unwrap().to_string().contains("none of the choices"));
}
