"""What a sweep varies: values, products, draws, files of points, and the names of the folders."""

import math
import re

import pytest

from peft_lightning.experiments.sweep.names import LONGEST, point_names
from peft_lightning.experiments.sweep.points import (
    as_options,
    make_points,
    read_points,
    read_seeds,
    without_seed,
)
from peft_lightning.experiments.sweep.values import read_value, read_vary
from peft_lightning.messages import UserError


def points(*texts, **options):
    return make_points([read_vary(text) for text in texts], **options)


def test_values_are_read_as_the_command_line_of_fit_reads_them():
    read = [read_value(t) for t in ("8", "1e-4", ".5", "true", "null", "LoRA", "007", "-2", "a b")]
    assert read == [8, 0.0001, 0.5, True, None, "LoRA", "007", -2, "a b"]
    assert [type(v) for v in read[:3]] == [int, float, float]
    assert read_value("[q_proj, v_proj]") == ["q_proj", "v_proj"]
    assert read_value("{a.jsonl: 2}") == {"a.jsonl": 2}
    assert read_value("'8'") == "8"


def test_several_options_make_their_product_and_the_seeds_of_a_point_follow_each_other():
    found = points("model.adapter.r=2,4", "model.learning_rate=1e-3", seeds=[0, 1])
    assert [tuple(p.values()) for p in found] == [
        *((2, 0.001, 0), (2, 0.001, 1), (4, 0.001, 0), (4, 0.001, 1))
    ]
    assert list(found[0]) == ["model.adapter.r", "model.learning_rate", "seed_everything"]
    assert without_seed(found[0]) == {"model.adapter.r": 2, "model.learning_rate": 0.001}


def test_options_of_one_vary_go_together():
    found = points("model.adapter.init_args.r,model.adapter.lora_alpha=2:4,4:8")
    assert found == [
        {"model.adapter.r": 2, "model.adapter.lora_alpha": 4},
        {"model.adapter.r": 4, "model.adapter.lora_alpha": 8},
    ]


def test_commas_and_colons_within_brackets_and_quotes_belong_to_a_value():
    found = points("model.adapter.target_modules=[q_proj,v_proj],all-linear")
    assert [p["model.adapter.target_modules"] for p in found] == [
        ["q_proj", "v_proj"],
        "all-linear",
    ]
    found = points("data.train,data.prompt={a.jsonl: 2}:'x: y, z',b.jsonl:c")
    assert found[0] == {"data.train": {"a.jsonl": 2}, "data.prompt": "x: y, z"}
    assert found[1] == {"data.train": "b.jsonl", "data.prompt": "c"}


def test_the_options_of_a_point_are_those_of_fit():
    settings = {"model.adapter": "LoRA", "a": ["q", "v"], "b": None, "c": 1e-5, "d": True}
    assert as_options(settings) == [
        *("--model.adapter=LoRA", '--a=["q", "v"]', "--b=null", "--c=1e-05", "--d=true")
    ]


def test_draws_are_in_their_range_reproducible_and_a_larger_number_begins_with_the_smaller():
    texts = ("model.learning_rate=log:1e-4..1e-2", "model.adapter.r=int:1..64", "x=uniform:0..1")
    few, many = points(*texts, draws=5), points(*texts, draws=200)
    assert many[:5] == few == points(*texts, draws=5)
    assert points(*texts, draws=5, draw_seed=1) != few
    rates = [p["model.learning_rate"] for p in many]
    assert all(1e-4 <= rate <= 1e-2 and rate == float(f"{rate:.3g}") for rate in rates)
    # the logarithm is uniform: half of the draws are below the geometric mean of the ends. The
    # standard deviation of that count is sqrt(200) / 2 = 7; four of them is 28
    assert abs(sum(math.log10(rate) < -3 for rate in rates) - 100) < 28
    ranks = [p["model.adapter.r"] for p in many]
    assert all(isinstance(r, int) and 1 <= r <= 64 for r in ranks)
    assert abs(sum(r <= 32 for r in ranks) - 100) < 28


def test_draws_of_lists_differ_and_each_has_all_seeds():
    found = points("a=1,2,3", "b=x,y", draws=6, seeds=[0, 1])
    assert len(found) == 12
    assert len({(p["a"], p["b"]) for p in found}) == 6
    assert [p["seed_everything"] for p in found[:4]] == [0, 1, 0, 1]


def test_a_file_of_points_has_dotted_options_or_sections(tmp_path):
    file = tmp_path / "points.yaml"
    file.write_text(
        "- {model.adapter: LoRA, model.adapter.r: 8, model.learning_rate: 1e-4}\n"
        "- model:\n"
        "    adapter: {class_path: PromptTuning, init_args: {num_virtual_tokens: 8}}\n"
        "    learning_rate: 0.3\n"
        "  data: {train: {a.jsonl: 2}}\n"
    )
    found = read_points(file)
    assert found == [
        {"model.adapter": "LoRA", "model.adapter.r": 8, "model.learning_rate": 0.0001},
        {
            "model.adapter": "PromptTuning",
            "model.adapter.num_virtual_tokens": 8,
            "model.learning_rate": 0.3,
            "data.train": {"a.jsonl": 2},
        },
    ]
    assert len(make_points([read_vary("data.batch_size=2,4")], found, [0, 1, 2])) == 12


def test_the_name_of_a_listed_point_names_its_folders_and_is_no_option(tmp_path):
    file = tmp_path / "points.yaml"
    file.write_text(
        "- {name: my prompt, model.adapter: PromptTuning, data.max_rows: 8}\n- {a: 1}\n"
    )
    found = make_points([read_vary("model.learning_rate=0.1")], read_points(file), [0])
    assert point_names(found) == [
        "my_prompt-learning_rate=0.1-seed=0",
        "a=1-learning_rate=0.1-seed=0",
    ]
    assert as_options(found[0]) == [
        "--model.adapter=PromptTuning",
        "--data.max_rows=8",
        "--model.learning_rate=0.1",
        "--seed_everything=0",
    ]


def test_seeds_are_a_list_or_a_range():
    assert read_seeds("0,2, 5") == [0, 2, 5]
    assert read_seeds("0-2,7") == [0, 1, 2, 7]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["model.adapter.r"], {}, "write an option and its values, as --vary model.adapter.r=2,4"),
        (["8=r"], {}, "write an option and its values"),
        (["r=2,,4"], {}, "'' is not a value for each of 1 options"),
        (["r=2,4,2"], {}, "2 is there twice"),
        (["a,b=2:4,4"], {}, r"'4' is not a value for each of 2 options, as in .*=2:4,4:8"),
        (["a.init_args.r,a.r=1:2"], {}, "an option is there twice"),
        (["a.r=1", "a.init_args.r=2"], {}, "a.r is varied twice"),
        (["a=log:1e-4..1e-2"], {}, "a has a range: say how many points, as --random 20"),
        (["a=log:0..1"], {"draws": 2}, "ends of a log range must be above 0"),
        (["a=int:1..2.5"], {"draws": 2}, "a range is two whole numbers, the smaller first"),
        (["a=uniform:1..0"], {"draws": 2}, "a range is two numbers, the smaller first"),
        (["a=normal:0..1"], {"draws": 2}, "a range is uniform:LOW..HIGH, log:LOW..HIGH or int"),
        (["a,b=log:1..2"], {"draws": 2}, "a range is for one option"),
        (["a=1,2"], {"draws": 3}, "--random 3: there are 2 combinations"),
        (["a=int:1..2"], {"draws": 3}, "--random 3: only 2 different points were found"),
        ([], {"draws": 3, "seeds": [1]}, "--random 3 needs --vary"),
        ([], {}, "nothing to vary: give --vary"),
        (["seed_everything=1,2"], {}, "give the seeds as --seeds 0,1,2"),
        (["a=[1"], {}, r"'\[1' is not a list or mapping in YAML"),
    ],
)
def test_what_cannot_be_a_sweep_is_named(texts, options, message):
    with pytest.raises(UserError, match=message):
        points(*texts, **options)


@pytest.mark.parametrize("text", ["a", "1,1", "2-1", "", "-1"])
def test_seeds_are_whole_numbers_each_once(text):
    with pytest.raises(UserError, match=f"--seeds {text}: write"):
        read_seeds(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "must hold a list"),
        ("- a", "point 1 is no mapping"),
        ("[{a: 1}, {a: 1}]", "point 2 is there twice"),
        ("[{name: x, a: 1}, {name: x, a: 2}]", "the name of point 2 is a text of its own"),
        ("[{name: 1, a: 1}]", "the name of point 1 is a text of its own"),
        ("- {", "is not YAML"),
    ],
)
def test_a_file_of_points_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_points(tmp_path / "p.yaml")
    with pytest.raises(UserError, match="no such file"):
        read_points(tmp_path / "q.yaml")


def test_a_folder_is_named_by_what_varies():
    assert point_names(points("model.adapter.init_args.r=8,16", seeds=[0])) == [
        *("r=8-seed=0", "r=16-seed=0")
    ]
    assert point_names(points("model.learning_rate=1e-5,0.1")) == [
        *("learning_rate=1e-05", "learning_rate=0.1")
    ]
    two = points("model.adapter.r=8", "model.teacher.r=4")
    assert point_names(two) == ["adapter.r=8-teacher.r=4"]
    odd = points("model.adapter.target_modules=[q_proj,v_proj],all-linear,null")
    assert point_names(odd) == [
        *("target_modules=q_proj+v_proj", "target_modules=all-linear", "target_modules=none")
    ]
    classes = [{"model.adapter": {"class_path": "my.module.LoRA", "init_args": {"r": 2}}}]
    assert point_names(classes) == ["adapter=LoRA_r=2"]


def test_names_are_different_short_and_need_no_quotes():
    texts = [f"data.prompt='{text}'" for text in ("a b", "a$b", "x" * 300, "../..", "ä")]
    found = point_names([p for text in texts for p in points(text)])
    assert len(set(found)) == 5
    assert all(re.fullmatch(r"[A-Za-z][\w.+=-]*", name, re.ASCII) for name in found)
    assert max(map(len, found)) <= LONGEST
    assert point_names(points("r=8"), taken=["r=8"])[0].startswith("r=8-")
