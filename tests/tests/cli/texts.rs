//! Texts: `generate`, `chat` and `perplexity`.

use crate::{fails, json, name, object, one_error};
use serde_json::Value;
use std::fs;
use std::path::Path;
use tempfile::{TempDir, tempdir};
use tritter_tests::fresh_seed;
use tritter_tests::program::{copy, fed, listing, made, on_cpu, succeeds, text};

#[test]
fn a_prompt_is_computed_once() {
    let (run, folder) = (name(&made().run), tempdir().unwrap());
    let (file, prompt) = (folder.path().join("prompt.cache"), "The river ran over the stones");
    let file = name(&file);
    for kv in ["f32", "int4"] {
        let generate = |more: &[&str]| {
            let base = ["generate", run, prompt, "-n", "12", "--temperature", "0", "--kv", kv, "--ignore-eos"];
            json(&[&base[..], more].concat(), &["ids"])["ids"].clone()
        };
        let saved = generate(&["--save-cache", file]);
        assert_eq!(generate(&["--load-cache", file]), saved, "{kv}");
    }
    let load = ["--load-cache", file, "-n", "12"];
    fails(&[&["generate", run, prompt], &load[..]].concat(), folder.path(), &["prompt.cache", "int4", "f32"]);
    let bytes = fs::read(file).unwrap();
    fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    let coded = [&["generate", run, prompt, "--kv", "int4"], &load[..]].concat();
    fails(&coded, folder.path(), &["prompt.cache", "cut short"]);
}

#[test]
fn perplexity_of_every_cache_type_is_given_against_f16() {
    let (run, data) = (name(&made().run), text());
    let arguments = ["perplexity", run, "--text", name(&data), "--context", "256", "--tokens", "512"];
    let report = json(&arguments, &["model", "context", "tokens", "caches"]);
    let caches = report["caches"].as_array().unwrap();
    assert_eq!(caches.len(), 5);
    for cache in caches {
        let (kv, ratio) = (cache["kv"].as_str().unwrap(), cache["ratio_to_f16"].as_f64().unwrap());
        assert!((ratio - 1.0).abs() < if kv == "int2" { 0.3 } else { 0.05 }, "{kv}: {ratio}");
    }
    fails(&["perplexity", run, "--text", name(&data), "--kv", "int3"], &made().run, &["int3", "int4"]);
    let short =
        on_cpu(&["perplexity", run, "--text", name(&data), "--kv", "int4", "--context", "64", "--tokens", "128"]);
    assert!(String::from_utf8_lossy(&short.stderr).contains("windows of 64 say nothing of codes"), "{short:?}");
}

#[test]
fn an_extension_of_the_context_is_stated() {
    let run = name(&made().run);
    fails(&["plan", run, "--context", "200000"], &made().run, &["200000", "131072", "--rope"]);
    succeeds(&["plan", run, "--context", "200000", "--rope", "yarn:2"]);
    succeeds(&["plan", run, "--context", "200000", "--rope", "theta:5e6"]);
    fails(&["plan", run, "--context", "300000", "--rope", "linear:2"], &made().run, &["300000", "262144"]);
}

#[test]
fn a_text_that_finds_no_page_ends_and_says_so() {
    let run = name(&made().run);
    let both = ["generate", run, "--prompt", "The", "--prompt", "A river", "-n", "100", "--ignore-eos"];
    let found = json(&[&both[..], &["--pages", "3"]].concat(), &["outputs"]);
    let texts = found["outputs"].as_array().unwrap();
    let mut reasons: Vec<&str> = texts.iter().map(|text| text["finish"].as_str().unwrap()).collect();
    reasons.sort();
    assert_eq!(reasons, ["cache pages", "length"]);
    let output = on_cpu(&[&both[..], &["--pages", "3"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("because the cache has no page left").count(), 1, "{said}");
    fails(&[&both[..], &["--pages", "0"]].concat(), &made().run, &["pool of 0 pages"]);
    let plan = succeeds(&["plan", run, "--context", "4k", "--pages", "3"]);
    assert!(String::from_utf8_lossy(&plan).contains("cache of 3 pages of 64 tokens in f32"), "{plan:?}");
}

#[test]
fn a_window_with_sinks_takes_a_text_of_any_length() {
    let run = name(&made().run);
    let stream = ["generate", run, "The", "-n", "3", "--context", "1m", "--window", "64"];
    succeeds(&[&stream[..], &["--sinks", "4"]].concat());
    succeeds(&stream);
    fails(&["generate", run, "The", "-n", "3", "--window", "0"], &made().run, &["window of 0"]);
    fails(
        &["generate", run, "The", "-n", "3", "--window", "4", "--sinks", "5"],
        &made().run,
        &["5 sinks", "window of 4"],
    );
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let seed = (fresh_seed() % 1_000_000).to_string();
    let sampled = |seed: &str| {
        let arguments = [
            "generate",
            name(&made().run),
            "The river",
            "-n",
            "40",
            "--ignore-eos",
            "--temperature",
            "1",
            "--seed",
            seed,
        ];
        json(&arguments, &[])["ids"].clone()
    };
    let first = sampled(&seed);
    assert_eq!(first.as_array().unwrap().len(), 40);
    assert_eq!(first, sampled(&seed), "seed {seed}");
    let other = (0..4).map(|i| sampled(&format!("{seed}{i}")));
    assert!(other.into_iter().any(|ids| ids != first), "seed {seed} and four others give the same");
}

fn greedy(model: &Path, prompt: &str, threads: &str) -> Value {
    let arguments = ["generate", name(model), prompt, "-n", "24", "--ignore-eos", "--temperature", "0", "-t", threads];
    json(&arguments, &[])["ids"].clone()
}

#[test]
fn greedy_text_does_not_depend_on_threads_or_packing() {
    let out = tempdir().unwrap();
    let (packed, dense) = (out.path().join("packed"), out.path().join("dense"));
    let first = greedy(&made().run, "The river", "1");
    assert_eq!(first.as_array().unwrap().len(), 24);
    assert_eq!(first, greedy(&made().run, "The river", "3"));
    let report = json(&["pack", name(&made().run), name(&packed)], &[]);
    assert!(report["bytes_after"].as_u64().unwrap() * 8 < report["bytes_before"].as_u64().unwrap());
    assert_eq!(first, greedy(&packed, "The river", "2"));
    assert!(listing(&packed).keys().all(|f| !name(f).contains("state-")), "a packed folder needs no optimiser state");
    succeeds(&["unpack", name(&packed), name(&dense)]);
    assert_eq!(greedy(&dense, "The river", "2").as_array().unwrap().len(), 24);
}

#[test]
fn prompts_come_from_standard_input_too() {
    let run = name(&made().run);
    let arguments = ["generate", run, "-n", "5", "--ignore-eos", "--temperature", "0", "--json"];
    let piped = fed(&arguments, "The rivér\n".as_bytes());
    assert!(piped.status.success(), "{}", String::from_utf8_lossy(&piped.stderr));
    let piped = object(&piped.stdout);
    assert_eq!(piped["prompt"], "The rivér");
    assert_eq!(piped["generated_tokens"], 5);
    let named = json(&["generate", run, "The rivér", "-n", "5", "--ignore-eos", "--temperature", "0"], &[]);
    assert_eq!(piped["ids"], named["ids"]);
    let bad = fed(&["generate", run, "-n", "5"], b"\xff\xff");
    one_error(&["generate (from standard input)"], &bad, &["standard input", "UTF-8"]);
    let plain = succeeds(&["generate", run, "The river", "-n", "2", "--ignore-eos"]);
    assert!(plain.starts_with(b"The river") && plain.ends_with(b"\n"));
}

#[test]
fn several_prompts_give_what_each_gives_alone() {
    let run = name(&made().run);
    let choice = ["-n", "12", "--ignore-eos", "--temperature", "0.8", "--seed", "4"];
    let alone = |prompt: &str| json(&[&["generate", run, prompt], &choice[..]].concat(), &["finish"])["ids"].clone();
    let folder = tempdir().unwrap();
    let file = folder.path().join("prompts.txt");
    fs::write(&file, "The stones\n\nOnce more\n").unwrap();
    let several = ["generate", run, "The river", "--prompt", "A", "--prompts", name(&file)];
    for batch in ["1", "3", "16"] {
        let report = json(&[&several[..], &["--batch", batch], &choice[..]].concat(), &["outputs", "seed"]);
        let outputs = report["outputs"].as_array().unwrap();
        assert_eq!(outputs.len(), 4);
        for (output, prompt) in outputs.iter().zip(["The river", "A", "The stones", "Once more"]) {
            assert_eq!(output["prompt"], prompt);
            assert_eq!(output["ids"], alone(prompt), "{prompt} in batches of {batch}");
        }
    }
    fails(&["generate", run, "--prompts", name(&folder.path().join("none"))], folder.path(), &["none", "prompts"]);
    fs::write(&file, "\n").unwrap();
    fails(&["generate", run, "--prompts", name(&file)], folder.path(), &["prompts.txt", "no prompts"]);
    fails(&["generate", run, "a", "--batch", "0"], folder.path(), &["--batch"]);
}

#[test]
fn generation_stops_and_says_what_it_took() {
    let run = name(&made().run);
    let choice = ["-n", "40", "--ignore-eos", "--temperature", "0"];
    let of =
        |more: &[&str], fields: &[&str]| json(&[&["generate", run, "The river"], &choice[..], more].concat(), fields);
    let whole = of(&[], &["text"]);
    assert_eq!(whole["finish"], "length");
    let letters: Vec<char> = whole["text"].as_str().unwrap().chars().collect();
    let stop: String = letters[letters.len() / 2..].iter().take(4).collect();
    let stopped = of(&["--stop", &stop, "--stop", "\u{1}"], &["text"]);
    assert_eq!(stopped["finish"], "stop");
    assert_eq!(stopped["text"].as_str(), whole["text"].as_str().unwrap().split(&stop).next());
    let drafted = of(&["--speculate", "5", "--stats"], &["stats"]);
    assert_eq!(drafted["ids"], whole["ids"]);
    let stats = &drafted["stats"];
    let number = |field: &str| stats[field].as_f64().unwrap_or_else(|| panic!("{field} in {stats}"));
    for field in
        ["time_to_first_token_seconds", "prefill_tokens_per_second", "decode_tokens_per_second", "bytes_per_token"]
    {
        assert!(number(field) > 0.0, "{field}");
    }
    assert!(number("tokens_per_step") >= 1.0 && number("bandwidth_share") > 0.0 && number("steps") <= 39.0);
    let here = tempdir().unwrap();
    fails(&["generate", run, "a", "--speculate", "3", "--temperature", "1"], here.path(), &["--temperature 0"]);
    fails(&["generate", run, "a", "--speculate", "3", "--batch", "2"], here.path(), &["--batch"]);
    fails(&["generate", run, "a", "--speculate", "64"], here.path(), &["--speculate 64", "at most 63"]);
}

/// A run with a chat template.
fn with_template(template: &str) -> TempDir {
    let folder = copy(&made().run);
    let (file, tokens) = (folder.path().join("chat_template.jinja"), folder.path().join("generation_config.json"));
    fs::write(file, template).unwrap();
    fs::write(tokens, "{\"do_sample\": false}").unwrap();
    folder
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content.strip() }}
{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}";

#[test]
fn a_chat_feeds_only_what_is_new() {
    let folder = with_template(TEMPLATE);
    let arguments = ["chat", name(folder.path()), "-n", "6", "--system", "Be brief.", "--json"];
    let said = "The river\nover \\\nthe stones\n\n/reset\nThe river\n/quit\nnot said\n";
    let output = fed(&arguments, said.as_bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = object(&output.stdout);
    let turns = report["turns"].as_array().unwrap();
    let number = |turn: usize, field: &str| turns[turn][field].as_u64().unwrap();
    assert_eq!(turns.len(), 3);
    assert_eq!(turns[1]["user"], "over \nthe stones");
    assert_eq!(number(0, "fed_tokens"), number(0, "context_tokens"));
    assert!(number(1, "context_tokens") > number(0, "context_tokens"));
    assert!(number(1, "fed_tokens") < number(1, "context_tokens") - number(0, "context_tokens") + 4, "{report:?}");
    assert_eq!((&turns[2]["text"], number(2, "context_tokens")), (&turns[0]["text"], number(0, "context_tokens")));
    assert!(number(2, "fed_tokens") < number(0, "fed_tokens"), "the system prompt stays in the cache: {report:?}");
    // The second turn says what the whole conversation says in one prompt.
    let plain = fed(&arguments[..6], b"The river\n");
    assert_eq!(String::from_utf8_lossy(&plain.stdout), format!("{}\n", turns[0]["text"].as_str().unwrap()));
    let once = ["generate", name(folder.path()), "The river", "--chat", "--system", "Be brief.", "-n", "6"];
    assert_eq!(json(&once, &[])["text"], turns[0]["text"]);
}

#[test]
fn a_saved_conversation_is_gone_on_with() {
    let (folder, files) = (with_template(TEMPLATE), tempdir().unwrap());
    let (whole, file) = (files.path().join("whole.cache"), files.path().join("talk.cache"));
    let chat = |more: &[&str], said: &[u8]| {
        let output = fed(&[&["chat", name(folder.path()), "-n", "6", "--kv", "int8", "--json"], more].concat(), said);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (object(&output.stdout)["turns"].as_array().unwrap().clone(), String::from_utf8(output.stderr).unwrap())
    };
    let save = ["--save-cache", name(&file)];
    let load = ["--load-cache", name(&file)];
    let brief = ["--system", "Be brief."];
    let (expected, _) = chat(&[&brief[..], &["--save-cache", name(&whole)]].concat(), b"The river\nover\nthe stones\n");
    let (first, said) = chat(&[&brief[..], &save].concat(), b"The river\n");
    assert!(first[..] == expected[..1] && said.contains("kept in"), "{said}");
    // Written over the file that it was loaded from, and what is fed is no more than in one go.
    let (second, said) = chat(&[save, load].concat(), b"over\n");
    assert!(second[..] == expected[1..2] && said.contains("3 messages"), "{second:?} {expected:?} {said}");
    let (third, _) = chat(&[save, load].concat(), b"the stones\n");
    assert_eq!(third[..], expected[2..]);
    assert_eq!(fs::read(&file).unwrap(), fs::read(&whole).unwrap(), "the same as in one go");
    // Back to what it began with: the system's message is the file's.
    let (reset, _) = chat(&load, b"/reset\nThe river\n");
    assert_eq!(reset[0]["text"], expected[0]["text"]);
    let (_, said) = chat(&["--save-cache", name(&files.path().join("none"))], b"");
    assert!(said.contains("not written") && !files.path().join("none").exists(), "{said}");
    let run = name(folder.path());
    let here = files.path();
    fails(&[&["chat", run, "--kv", "int8"], &load[..], &brief].concat(), here, &["talk.cache", "--system"]);
    fails(&[&["chat", run, "--kv", "int4"], &load[..]].concat(), here, &["talk.cache", "int8"]);
    fails(&["chat", run, "--save-cache", "nowhere/talk.cache"], here, &["nowhere", "--save-cache"]);
    fails(&["chat", run, "--load-cache", "missing.cache"], here, &["missing.cache"]);
    // A prompt's file spares what the conversation has in common with it.
    let generate = ["generate", run, "The river", "--chat", "--kv", "int8", "-n", "2"];
    succeeds(&[&generate[..], &brief, &save].concat());
    let (warm, said) = chat(&[&brief[..], &load].concat(), b"The river\n");
    assert!(warm[0]["text"] == expected[0]["text"] && said.contains("0 messages"), "{said}");
    assert!(warm[0]["fed_tokens"].as_u64() < expected[0]["fed_tokens"].as_u64(), "{warm:?}");
}

#[test]
fn chats_that_cannot_be() {
    let run = &made().run;
    fails(&["chat", name(run)], run, &["chat_template"]);
    fails(&["generate", name(run), "a", "--chat"], run, &["chat_template"]);
    let folder = with_template("{{ raise_exception('no chats here') }}");
    let output = fed(&["chat", name(folder.path())], b"a\n");
    one_error(&["chat"], &output, &["chat_template.jinja", "no chats here"]);
    let folder = with_template(TEMPLATE);
    let long = format!("{}\nThe\n", "river ".repeat(200));
    let output = fed(&["chat", name(folder.path()), "--context", "64", "-n", "2", "--json"], long.as_bytes());
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("--context"));
    assert_eq!(object(&output.stdout)["turns"].as_array().unwrap().len(), 1, "what does not fit is not said");
}
