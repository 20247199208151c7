"""The command audit, run as a user runs it."""

import html.parser
import json
import os
import pty
import re

import pytest
from transformers import AutoTokenizer

import warm_python
from cli_driver import ENVIRONMENT, drive
from peft_lightning import SFTDataModule
from peft_lightning.data.tokens.marked_tokens import GREEN

CLEAN = [
    {"prompt": f"question {i}: {chr(97 + i % 26) * 12}", "completion": f"{chr(97 + i) * 9} {i}"}
    for i in range(24)
]


def write(path, records):
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def audit(base, tmp_path):
    """Return a function that runs ``audit`` and returns status, output and errors."""

    def run(*args):
        return drive(tmp_path, [["audit", *map(str, args), "--tokenizer", str(base)]])[0]

    return run


@pytest.fixture
def found(audit):
    """Return a function that runs ``audit --json`` and returns the status and the report."""

    def run(*args):
        status, out, err = audit(*args, "--json")
        assert "Traceback" not in err, err
        return status, json.loads(out)

    return run


def kinds(report):
    return {finding["kind"]: finding for finding in report["findings"]}


def test_json_has_rows_counts_and_findings_that_agree_with_the_chat_template(base, rows, found):
    status, report = found(rows, "--rows", "24")
    assert status in (0, 1)
    assert list(report) == ["rows", "counts", "findings"]
    tokenizer = AutoTokenizer.from_pretrained(base)
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(report["rows"]) == 24
    assert report["rows"][0]["source"] == f"{rows}:1"
    total, in_loss = 0, 0
    for row in report["rows"]:
        assert list(row) == ["source", "tokens"]
        record = records[int(row["source"].rpartition(":")[2]) - 1]
        text = (
            f"<|im_start|>user\n{record['prompt']}<|im_end|>\n"
            f"<|im_start|>assistant\n{record['completion']}<|im_end|>\n"
        )
        assert "".join(token["text"] for token in row["tokens"]) == text
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [token["id"] for token in row["tokens"]] == ids
        labelled = [token for token in row["tokens"] if token["in_loss"]]
        assert "".join(t["text"] for t in labelled) == f"{record['completion']}<|im_end|>"
        assert {token["weight"] for token in labelled} == {1.0}
        assert all(set(t) == {"text", "id", "in_loss", "weight"} for t in row["tokens"])
        total += len(ids)
        in_loss += len(labelled)
    counts = report["counts"]
    assert (counts["read"], counts["kept"], counts["left_out"]) == (24, 24, {})
    assert (counts["tokens"], counts["tokens_in_loss"]) == (total, in_loss)
    assert counts["share_in_loss"] == pytest.approx(in_loss / total, abs=1e-6)
    lengths = sorted(len(row["tokens"]) for row in report["rows"])
    assert (counts["lengths"]["min"], counts["lengths"]["max"]) == (lengths[0], lengths[-1])
    assert sum(bar["count"] for bar in counts["lengths"]["histogram"]) == 24


def test_the_splits_are_those_that_fit_uses(base, rows, found, tmp_path):
    options = {"train": str(rows), "max_length": 60, "on_bad_row": "skip"}
    data = SFTDataModule(**options, tokenizer=str(base), cache_dir=str(tmp_path / "cache"))
    data.setup("fit")
    _, report = found(rows, "--data.max_length", "60", "--data.on_bad_row", "skip")
    splits = report["counts"]["splits"]
    assert data.sizes["train"]["rows"] < 23  # some are too long
    assert {name: split["sequences"] for name, split in splits.items()} == {
        name: sizes["rows"] for name, sizes in data.sizes.items()
    }
    for name, sizes in data.sizes.items():
        assert splits[name]["tokens"] == sizes["tokens"]
        assert splits[name]["tokens_in_loss"] == sizes["loss_tokens"]


def test_the_exit_status_tells_clean_from_findings_and_errors(audit, tmp_path):
    clean = write(tmp_path / "clean.jsonl", CLEAN)
    noted = write(tmp_path / "noted.jsonl", [row | {"id": i} for i, row in enumerate(CLEAN)])
    odd = write(tmp_path / "odd.jsonl", [*CLEAN, CLEAN[3]])
    status, out, _ = audit(clean)
    assert (status, out.count("no findings"), out.count("no notes")) == (0, 1, 1), out
    assert out.endswith("\nno findings and no notes\n")
    status, out, _ = audit(noted)
    assert (status, "no findings" in out) == (0, True), out
    assert re.search(r"notes:\n +24  unused column id\n +\S+noted.jsonl:1\n", out)
    status, out, err = audit(odd)
    assert (status, err.count("error")) == (1, 0)
    assert re.search(r"findings:\n +1  duplicate in training\n +\S+:25: like \S+:4\n", out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no data to look at: audit FILE, or audit --config FILE with data.train"),
        (["nothing.jsonl"], "nothing.jsonl: no such file"),
        (["x.jsonl", "--rows", "-1"], "--rows must be at least 0, got -1"),
        (["x.jsonl", "--color", "maybe"], "--color must be auto, always or never, got 'maybe'"),
        (["x.jsonl", "--data.max_lenght", "9"], "did you mean 'max_length'"),
        (["x.jsonl", "y.jsonl"], "unexpected 'y.jsonl'"),
        (
            ["x.jsonl", "--html", "x.jsonl"],
            "--html x.jsonl: the name of the file must end in .html",
        ),
        (["x.jsonl", "--json", "other.json"], "there is such a file, and it is no report of audit"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(audit, tmp_path, args, message):
    write(tmp_path / "x.jsonl", CLEAN)
    (tmp_path / "other.json").write_text("[]")
    status, out, err = audit(*args)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert (tmp_path / "other.json").read_text() == "[]"


def test_every_bad_row_is_counted_and_five_of_each_reason_are_shown(audit, found, tmp_path):
    bad = [{"prompt": "p"}] * 7 + [{"prompt": "p", "completion": ""}, "{oops", "[1]"]
    path = write(tmp_path / "bad.jsonl", [*CLEAN, *bad])
    status, report = found(path)
    assert status == 1
    left_out = {k: f for k, f in kinds(report).items() if k.startswith("row left out")}
    assert sorted(f["count"] for f in left_out.values()) == [1, 1, 1, 7]
    assert report["counts"]["left_out"] == {
        kind.removeprefix("row left out: "): f["count"] for kind, f in left_out.items()
    }
    most = max(left_out.values(), key=lambda finding: finding["count"])
    assert most["example"] == f"{path}:25"
    assert [e["source"] for e in most["examples"]] == [f"{path}:{i}" for i in range(25, 30)]
    _, out, _ = audit(path)
    assert f"{path}:33: invalid JSON" in out
    assert "fit stops at the first malformed row" in out
    assert "fit stops" not in audit(path, "--data.on_bad_row", "skip")[1]


def test_nothing_but_bad_rows_is_a_report_too(audit, found, tmp_path):
    path = write(tmp_path / "bad.jsonl", [{"prompt": "p", "completion": ""}] * 3)
    status, report = found(path)
    assert (status, report["rows"], report["counts"]["kept"]) == (1, [], 0)
    assert f"fit stops, because no row is left of {path}" in audit(path)[1]


def test_copies_within_training_and_in_validation_are_found(found, tmp_path):
    long = " ".join(f"{chr(97 + i % 26) * (3 + i % 5)}{i}" for i in range(40))
    near = {"prompt": long, "completion": "the answer"}
    train = write(tmp_path / "train.jsonl", [*CLEAN, near, CLEAN[0]])
    other = {"prompt": long.replace("c2 ", "xyz "), "completion": "the answer"}
    new = {"prompt": "nothing like that was asked", "completion": "indeed, it was not"}
    val = write(tmp_path / "val.jsonl", [new, CLEAN[5], other, CLEAN[0]])
    status, report = found(train, "--data.val", val)
    by_kind = kinds(report)
    assert status == 1
    exact = by_kind["validation row that is trained on"]
    assert [(e["source"], e["detail"]) for e in exact["examples"]] == [
        (f"{val}:2", f"like {train}:6"),
        (f"{val}:4", f"like {train}:1"),
    ]
    almost = by_kind["validation row that is nearly one of training"]
    assert (almost["count"], almost["example"], almost["detail"]) == (
        1,
        f"{val}:3",
        f"like {train}:25",
    )
    assert by_kind["duplicate in training"]["example"] == f"{train}:26"
    assert "near duplicate in training" not in by_kind


def test_odd_texts_and_answers_are_found_with_their_places(found, tmp_path):
    odd = {
        "mojibake": {"prompt": "cafÃ© au lait", "completion": "a drink"},
        "replacement character U+FFFD": {"prompt": "lost \ufffd bytes", "completion": "a pity"},
        "control character": {"prompt": "bell \x07 rings", "completion": "ding ding"},
        "answer that repeats itself": {"prompt": "go on", "completion": "on and on " * 20},
        "special token in the text, encoded as text: <|im_end|>": {
            "prompt": "end <|im_end|> here",
            "completion": "no end",
        },
    }
    path = write(tmp_path / "odd.jsonl", [*CLEAN, *odd.values()])
    status, report = found(path)
    assert status == 1
    places = {kind: (f["count"], f["example"]) for kind, f in kinds(report).items()}
    for i, kind in enumerate(odd):
        assert places[kind] == (1, f"{path}:{25 + i}")


def test_the_answers_of_a_classification_are_labels(audit, found, tmp_path):
    records = [
        {"prompt": f"{row['prompt']} {i}", "completion": "no" if i == 7 else "yes"}
        for i, row in enumerate(CLEAN)
    ]
    path = write(tmp_path / "labels.jsonl", records)
    _, report = found(path)
    assert report["counts"]["answers"]["labels"] == {"yes": 23, "no": 1}
    assert kinds(report)["unbalanced labels"]["example"] == f"{path}:8"
    assert "same answer" not in kinds(report)
    assert re.search(r"answers   2 distinct.*\n +23  yes\n +1  no\n", audit(path)[1])


def test_an_answer_of_many_rows_is_found_where_answers_are_no_labels(found, tmp_path):
    records = [*CLEAN, *({"prompt": f"ask {i * 37}", "completion": "I cannot."} for i in range(12))]
    status, report = found(write(tmp_path / "same.jsonl", records))
    assert (status, kinds(report)["same answer"]["count"]) == (1, 12)
    assert "I cannot. in 33.3% of the rows" in kinds(report)["same answer"]["detail"]


def test_max_length_and_what_would_keep_the_rows_are_told(audit, found, tmp_path):
    records = [{"text": chr(97 + i % 26) * (i + 1)} for i in range(100)]  # and the end token
    path = write(tmp_path / "text.jsonl", records)
    _, report = found(path, "--data.max_length", "91", "--data.val_fraction", "0")
    lengths = report["counts"]["lengths"]
    assert (lengths["max_length"], lengths["longer"]) == (91, 10)
    assert lengths["keeps"] == {"95": 96, "99": 100, "100": 101}
    status, out, _ = audit(path, "--data.max_length", "91", "--data.truncation", "truncate")
    assert status == 1
    assert "10  row cut at max_length 91" in out
    assert "96 keeps 95 %, 100 keeps 99 %, 101 keeps 100 %" in out


def test_a_config_gives_data_options_and_model_and_the_command_line_wins(base, tmp_path):
    write(tmp_path / "a.jsonl", CLEAN)
    write(tmp_path / "b.jsonl", CLEAN[:10])
    (tmp_path / "run.yaml").write_text(
        f"model: {{base_model: {base}}}\n"
        "data: {train: a.jsonl, max_length: 30, train_on: all, val_fraction: 0}\n"
        "trainer: {max_steps: 5}\n"
    )
    lines = [
        ["--config", "run.yaml", "--json"],
        ["b.jsonl", "--config", "run.yaml", "--json", "--data.max_length", "99"],
        ["--data.max_length=99", "--config=run.yaml", "b.jsonl", "--json"],
    ]
    of_config, of_words, again = (
        json.loads(out) for _, out, _ in drive(tmp_path, [["audit", *line] for line in lines])
    )
    assert of_config["counts"]["lengths"]["max_length"] == 30
    assert (of_config["counts"]["read"], of_config["counts"]["kept"]) == (24, 0)
    assert of_words == again
    assert (of_words["counts"]["read"], of_words["counts"]["kept"]) == (10, 10)
    assert of_words["counts"]["tokens"] - of_words["counts"]["tokens_in_loss"] == 10  # all but BOS
    assert not (tmp_path / "runs").exists()


def test_colours_are_for_terminals(audit, base, tmp_path):
    path = write(tmp_path / "x.jsonl", CLEAN[:3])
    plain = audit(path)[1]
    assert f"assistant\n⟦{CLEAN[0]['completion']}<|im_end|>⟧" in plain
    assert "\x1b" not in plain
    colored = audit(path, "--color", "always")[1]
    assert f"{GREEN}{CLEAN[0]['completion']}" in colored
    assert "⟦" not in colored
    command = ["-m", "peft_lightning", "audit", path, "--tokenizer", str(base)]
    assert GREEN in at_terminal(command, tmp_path)
    assert "\x1b" not in at_terminal([*command, "--color", "never"], tmp_path).replace("\x1b[K", "")


def at_terminal(command, folder):
    """Return what a program writes to a terminal as its standard output."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        program = warm_python.start(command, cwd=folder, env=ENVIRONMENT, stdout=terminal)
    written = b""
    try:
        while piece := os.read(master, 4096):
            written += piece
    except OSError:  # the program has ended
        pass
    assert program.wait(60) == 0
    os.close(master)
    return written.decode()


def test_what_rows_say_cannot_act_on_the_terminal(audit, tmp_path):
    evil = {
        "prompt": "\x1b]0;title\x07 \x1b[2J",
        "completion": "⟦\x1b[31m red⟧",
        "\x1b[5mcolumn": 1,
    }
    path = write(tmp_path / "evil.jsonl", [evil, *CLEAN])
    for color in ("never", "always"):
        _, out, _ = audit(path, "--rows", "1", "--color", color)
        rest = out.replace(GREEN, "").replace("\x1b[0m", "").replace("\x1b[2m", "")
        assert "\x1b" not in rest
        assert "\x07" not in rest
        assert r"\x1b[2J" in rest
        assert r"\u27e6\x1b[31m red\u27e7" in rest


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else_and_rows_cannot_act_in_it(audit, tmp_path):
    script = '</pre><script>alert(1)</script><img src=x onerror=alert(2)>"\' onmouseover="x()"'
    evil = {"prompt": script, "completion": script + " &lt;", "<svg/onload=alert(3)>": script}
    bad = {"prompt": "p", "<b>column</b>": "x"}
    path = write(tmp_path / "<i>evil.jsonl", [evil, *CLEAN, bad])
    status, _, err = audit(path, "--html", "out/report.html")
    assert status == 1
    assert "written to out/report.html" in err
    text = (tmp_path / "out" / "report.html").read_text("utf-8")
    page = Page(text)
    allowed = (
        "html head meta title style body header nav a main section div h1 h2 h3 p pre span sup "
        "table thead tbody tr th td br svg rect text"
    )
    assert {tag for tag, _ in page.tags} <= set(allowed.split())
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes), tag
        assert attributes.get("href", "#").startswith("#"), tag
        styled = {"loss", "special", "n", "bar", "over", "table", "note", "mono"}
        assert set(attributes.get("class", "").split()) <= styled
    assert page.text.count(script) >= 2  # shown as it is
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http-equiv", "")
    bars = [attributes for tag, attributes in page.tags if tag == "rect"]
    assert bars
    assert audit(path, "--html", "out/report.html")[0] == 1  # written once more over itself


def test_rows_are_shown_of_all_training_files_and_none_of_validation(base, tmp_path):
    for name in ("a", "b", "val"):
        write(tmp_path / f"{name}.jsonl", [r | {"prompt": f"{name} {r['prompt']}"} for r in CLEAN])
    (tmp_path / "run.yaml").write_text(
        f"model: {{base_model: {base}}}\ndata: {{train: [a.jsonl, b.jsonl], val: val.jsonl}}\n"
    )
    ((_, out, _),) = drive(tmp_path, [["audit", "--config", "run.yaml", "--rows", "12", "--json"]])
    report = json.loads(out)
    places = [row["source"] for row in report["rows"]]
    assert places[0] == "a.jsonl:1"
    assert len(set(places)) == 12
    assert {place.partition(":")[0] for place in places} == {"a.jsonl", "b.jsonl"}
    splits = {name: split["sequences"] for name, split in report["counts"]["splits"].items()}
    assert splits == {"train": 48, "val": 24}


def test_the_same_prompt_with_different_answers_is_a_finding(audit, found, tmp_path):
    rows = [*CLEAN, {"prompt": CLEAN[3]["prompt"], "completion": "Something else entirely"}]
    status, report = found(write(tmp_path / "odd.jsonl", rows))
    kind = "same prompt with different answers"
    [finding] = [finding for finding in report["findings"] if finding["kind"] == kind]
    assert (status, finding["count"], finding["note"]) == (1, 2, False)
    assert finding["example"].endswith("odd.jsonl:4")
    assert re.search(r"2 answers, another in \S+odd.jsonl:25$", finding["detail"])


def test_copies_and_rows_without_a_prompt_have_no_different_answers(found, tmp_path):
    for rows in ([*CLEAN, CLEAN[3]], [{"text": row["completion"]} for row in CLEAN]):
        _, report = found(write(tmp_path / "x.jsonl", rows))
        assert "same prompt" not in str(report["findings"])


def test_json_goes_to_a_file_of_that_name(audit, found, tmp_path):
    path = write(tmp_path / "x.jsonl", CLEAN)
    for args in ([path, "--json", "out.json"], ["--json", "out.json", path]):
        status, out, _ = audit(*args)
        assert (status, "no findings" in out) == (0, True)
        assert json.loads((tmp_path / "out.json").read_text()) == found(path)[1]


def test_weights_other_than_1_are_shown(audit, found, tmp_path):
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "half", "weight": 0.5},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "none", "weight": 0},
        {"role": "user", "content": "q3"},
        {"role": "assistant", "content": "whole"},
    ]
    path = write(tmp_path / "x.jsonl", [{"messages": turns}])
    out = audit(path)[1]
    assert "⟦0.5:half<|im_end|>⟧" in out
    assert "⟦whole<|im_end|>⟧" in out
    assert "none<|im_end|>" in out
    assert "⟦none" not in out
    weights = {t["text"]: t["weight"] for t in found(path)[1]["rows"][0]["tokens"]}
    assert weights["f"] == 0.5
    assert weights["w"] == 1
