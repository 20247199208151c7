"""A class that is named for an option has its own defaults, whatever class is the default."""

import yaml

from cli_driver import drive


def config_of(folder, *options):
    line = ["fit", "--model.base_model", "b", "--data.train", "t", *options, "--print_config"]
    ((status, out, errors),) = drive(folder, [line])
    assert status == 0, errors
    return yaml.safe_load(out)["model"]


def test_another_adapter_does_not_get_the_rank_of_the_default_one(tmp_path):
    assert config_of(tmp_path)["adapter"]["init_args"]["r"] == 16
    assert config_of(tmp_path, "--model.adapter", "MiSS")["adapter"]["init_args"]["r"] == 64
    found = config_of(tmp_path, "--model.adapter=OFT", "--model.adapter.oft_block_size=8")
    assert found["adapter"]["init_args"]["r"] == 0
    assert found["adapter"]["init_args"]["oft_block_size"] == 8


def test_what_is_said_stays(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {adapter: {class_path: MiSS, init_args: {r: 16}}}\n")
    found = config_of(tmp_path, "--config=c.yaml", "--model.adapter.miss_dropout=0.5")
    assert found["adapter"]["init_args"]["r"] == 16
    assert found["adapter"]["init_args"]["miss_dropout"] == 0.5
    assert config_of(tmp_path, "--model.adapter.r=4")["adapter"]["init_args"]["r"] == 4
