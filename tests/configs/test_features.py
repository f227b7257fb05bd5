"""Sources of features in the configuration: what is refused before any environment is made."""

import pytest

from configs.checks import ConfigError
from configs.loading import from_dict, load_config, to_dict
from configs.terms import read_channels


def test_sources_survive_json_and_are_lists() -> None:
    sources = ["blstats", "info:x_position", "objects:my.module:things", "my.module:numbers"]
    config = load_config(overrides=[f"env.features=[{', '.join(sources)}]"])
    assert config.env.features == sources
    assert from_dict(to_dict(config)) == config
    assert load_config().env.features == []


def test_the_episode_archive_reads_the_features_that_there_are() -> None:
    kept = ["archive.keep=true"]
    assert "features" in read_channels(load_config(overrides=["env.features=[obs]", *kept]))
    assert "features" not in read_channels(load_config(overrides=["env.features=[obs]"]))
    assert "features" not in read_channels(load_config(overrides=kept))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["env.features=[blstat]"],
            "env.features: got 'blstat' (did you mean 'blstats'?), wanted blstats, minigrid, obs,",
        ),
        (["env.features=[info]"], "env.features: got 'info' (did you mean 'info:KEY'?), wanted"),
        (["env.features=['']"], "env.features: got '', wanted blstats"),
        (["env.features=['blstats:hp']"], "got 'blstats:hp', wanted blstats, minigrid, obs, info:KEY, module:function"),
        (["env.features=['info:']"], "env.features: 'info:': got the name '', wanted an identifier"),
        (
            ["env.features=['info:x position']"],
            "got the name 'x position', wanted an identifier: letters, digits and _",
        ),
        (["env.features=['info:lambda']"], "got the name 'lambda', wanted an identifier"),
        (["env.features=['objects:things']"], "got 'objects:things', wanted blstats"),
        (["env.features=['module:']"], "got 'module:', wanted blstats"),
        (["env.features=['a:b:c']"], "got 'a:b:c', wanted blstats"),
        (["env.features=[obs, obs]"], "env.features: got 'obs' twice, wanted each source once"),
        (["env.feature_names=[x]"], "env.feature_names: got 1 names with env.features=[], wanted none: they name"),
        (["env.features=[obs]", "env.feature_names=[x, x]"], "env.feature_names: got the name 'x' twice, wanted diff"),
        (["env.features=[obs]", "env.feature_names=[2nd]"], "env.feature_names: got the name '2nd', wanted an ident"),
    ],
)
def test_sources_and_names_that_are_wrong_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
