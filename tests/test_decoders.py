"""Decoders: ties, values by hand, consistency with losses, and the choice of the decoder in a config."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from snnexp import config, decoders, losses
from snnexp.config import decoding
from snnexp.decoders import (
    Decoder,
    EachStep,
    FirstSpike,
    LastMembrane,
    MaxMembrane,
    MeanMembrane,
    Population,
    Readout,
    SpikeCount,
    SumMembrane,
)
from snnexp.errors import ConfigError
from snnexp.experiment import build, compose
from snnexp.neurons import Trace, statistic_names
from snnexp.spec import parts

RECIPES = {
    "mnist_leaky": "spike_count",
    "mnist_rleaky_count": "spike_count",
    "mnist_rleaky_membrane": "spike_count",
    "mnist_rleaky_conv": "spike_count",
    "mnist_parametrized_lif": "max_membrane",
    "regression_linear": "",
    "regression_sqrt": "",
    "regression_sqrt_fit": "",
}


def fired(*classes: list[int], num_steps: int = 4, num_classes: int = 3) -> Trace:
    """Return a trace with spikes at the steps ``classes[b][k]``, -1 for none, and a zero membrane."""
    spikes = torch.zeros(num_steps, len(classes), num_classes)
    for b, steps in enumerate(classes):
        for k, t in enumerate(steps):
            if t >= 0:
                spikes[t, b, k] = 1
    return Trace(spikes, torch.zeros_like(spikes), None)


def test_ties_of_counts_go_to_the_lowest_class() -> None:
    """Without spikes, the class is 0."""
    count = torch.tensor([[0.0, 0, 3], [0, 1, 1], [2, 0, 2], [0, 0, 0]])
    trace = SimpleNamespace(spike_count=count, max_membrane=torch.zeros(4, 3))
    assert SpikeCount()(trace).tolist() == [2, 1, 0, 0]
    assert SpikeCount().undecided(trace).tolist() == [False, True, True, True]


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("decoder", [SpikeCount(), MaxMembrane(), SumMembrane(), FirstSpike()])
def test_ties_between_many_classes_go_to_the_lowest(decoder: Decoder, classes: int) -> None:
    for first in (0, classes // 2):
        spikes = torch.zeros(3, 5, classes)
        spikes[:, :, first:] = 1
        assert decoder(Trace(spikes, spikes, None)).tolist() == [first] * 5


def test_ties_of_counts_can_go_to_the_highest_membrane() -> None:
    """The membrane only decides between the classes with the highest count."""
    count = torch.tensor([[2.0, 2, 1], [0, 0, 0], [1, 0, 0], [16777216, 16777216, 0]])
    membrane = torch.tensor([[0.1, 0.3, 9.0], [-3.0, -2.0, -1.0], [-5.0, 5, 5], [0.1, 0.2, 0]])
    trace = SimpleNamespace(spike_count=count, max_membrane=membrane)
    assert SpikeCount(ties="membrane")(trace).tolist() == [1, 2, 0, 1]
    assert not SpikeCount(ties="membrane").undecided(trace).any()


def test_first_spike() -> None:
    trace = fired([3, 1, -1], [-1, -1, 2], [2, 2, 3], [-1, -1, -1])
    assert FirstSpike()(trace).tolist() == [1, 2, 0, 0]
    assert FirstSpike().scores(trace)[0].tolist() == [-3, -1, -4], "T where it never fires"
    assert FirstSpike().undecided(trace).tolist() == [False, False, True, True]


def test_membrane_decoders() -> None:
    """The class with the highest maximum has not the highest mean."""
    membrane = torch.full((5, 1, 3), -1.0)
    membrane[:, 0, 0], membrane[3, 0, 1], membrane[4, 0, 2] = 0.4, 0.9, 0.5
    trace = Trace(torch.zeros_like(membrane), membrane, None)
    classes = [decoder(trace).item() for decoder in (MaxMembrane(), MeanMembrane(), SumMembrane(), LastMembrane())]
    assert classes == [1, 0, 0, 2]
    assert EachStep()(trace).squeeze(1).tolist() == [0, 0, 0, 1, 2]


def random_trace(K: int = 6) -> Trace:
    random = torch.Generator().manual_seed(0)
    membrane = torch.randn((7, 40, K), generator=random)
    return Trace((membrane > 0.5).float(), membrane, None)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        *((loss, loss.decoder) for loss in (losses.CEMembrane(), losses.MSECount(), losses.NLLMaxVoltage())),
        (losses.MSEMembrane(), "mean_membrane"),
    ],
)
def test_the_decoded_class_minimizes_the_loss(loss: losses.Loss, name: str) -> None:
    """The predicted class is the label with the smallest loss."""
    trace = random_trace()
    for b in range(40):
        one = Trace(trace.spikes[:, [b]], trace.membrane[:, [b]], None)
        best = min(loss(one, torch.tensor([label])).item() for label in range(6))
        decoder = getattr(decoders, parts.by_choice("decoder")[name].name)()
        chosen = decoder(one)
        assert loss(one, chosen).item() == pytest.approx(best)


class TestPopulation:
    def test_neurons_of_a_class_are_contiguous(self) -> None:
        spikes = torch.zeros(2, 1, 6)
        spikes[:, 0, 2], spikes[0, 0, 4], spikes[0, 0, 5] = 1, 1, 1
        trace = Trace(spikes, spikes, None)
        assert Population(2).scores(trace).tolist() == [[0, 1, 1]]
        assert Population(2)(trace).tolist() == [1]
        assert Population(3)(trace).tolist() == [0]
        assert Population(2).neurons(10) == 20

    def test_equals_snntorch(self) -> None:
        functional = pytest.importorskip("snntorch.functional")
        spikes, labels = random_trace(30).spikes, torch.arange(40) % 10
        expected = functional.accuracy_rate(spikes, labels, population_code=True, num_classes=10)
        accuracy = (Population(3)(Trace(spikes, spikes, None)) == labels).float().mean().item()
        assert accuracy == pytest.approx(expected)

    @pytest.mark.parametrize("loss", [losses.CEMembrane(), losses.MSECount(), losses.NLLMaxVoltage()])
    def test_the_loss_reads_averaged_statistics(self, loss: losses.Loss) -> None:
        trace, target = random_trace(6), torch.arange(40) % 3
        averaged = {name: getattr(trace, name) for name in statistic_names(loss.reads)}
        averaged = {name: (value[..., ::2] + value[..., 1::2]) / 2 for name, value in averaged.items()}
        expected = loss(SimpleNamespace(num_steps=7, **averaged), target)
        torch.testing.assert_close(loss(Population(2).pooled(trace), target), expected)

    @pytest.mark.usefixtures("tiny_mnist")
    def test_readout_has_size_neurons_per_class(self) -> None:
        words = ["decoder=population", "decoder.size=3", "network.hidden=[4]", "data.batch_size=8", "trainer=cpu"]
        made = build(compose(words))
        assert made.network.neurons()["readout"].features == (30,)
        x, y = made.data.test[[0, 1, 2]]
        loss, _, _, traces = made.task._step((x, y))
        loss.backward()
        assert made.decoder is not None
        assert made.decoder(traces[-1]).shape == (3,)
        assert made.decoder.scores(traces[-1]).shape == (3, 10)


def test_metrics_compare_the_same_statistic_as_the_loss() -> None:
    """Metrics of a loss on spikes compare spikes, those of a loss on the last step the last step."""
    trace = random_trace(2)
    target = torch.rand(7, 40, 2)
    for reads, expected in {
        "spikes": (trace.spikes, target),
        "membrane": (trace.membrane, target),
        "last_membrane": (trace.membrane[-1], target[-1]),
        ("mean_membrane", "spikes"): (trace.membrane.mean(0), target[-1]),
    }.items():
        loss = type("Own", (losses.Loss,), {"reads": reads})()
        for ours, theirs in zip(Readout(trace, None, loss).compared(target), expected, strict=True):
            assert torch.equal(ours, theirs)
    values = torch.rand(40, 2)
    assert torch.equal(Readout(trace, None, losses.MSEMembrane()).compared(values)[1], values.expand(7, 40, 2))


def chosen(*words: str) -> str:
    return decoding.decoder_name(config.plain(compose([*words, "trainer=cpu"])))


class TestChoice:
    @pytest.mark.parametrize(("recipe", "decoder"), RECIPES.items())
    def test_recipes_keep_their_decoder(self, recipe: str, decoder: str) -> None:
        assert chosen(f"experiment={recipe}") == decoder

    @pytest.mark.parametrize(
        ("loss", "readout", "decoder"),
        [
            ("ce_membrane", "same", "sum_membrane"),
            ("ce_membrane", "leaky", "sum_membrane"),
            ("ce_membrane", "leaky_integrator", "sum_membrane"),
            ("mse_membrane", "same", "spike_count"),
            ("mse_membrane", "leaky_integrator", "max_membrane"),
            ("mse_count", "same", "spike_count"),
            ("nll_max_voltage", "leaky_integrator", "max_membrane"),
        ],
    )
    def test_changed_loss_or_readout_has_the_default_decoder_of_the_loss(
        self, loss: str, readout: str, decoder: str
    ) -> None:
        assert chosen(f"loss={loss}", f"readout={readout}") == decoder
        if (loss, readout) != ("ce_membrane", "same"):
            assert chosen("experiment=mnist_leaky", f"loss={loss}", f"readout={readout}") == decoder

    def test_explicit_decoder_takes_precedence(self) -> None:
        words = ("experiment=mnist_leaky", "loss=mse_membrane", "decoder=last_membrane")
        assert chosen(*words) == "last_membrane"
        cfg = compose([*words[:2], "decoder=spike_count", "decoder.ties=membrane"])
        assert cfg.decoder == {"_target_": "snnexp.decoders.SpikeCount", "ties": "membrane"}

    def test_auto_is_the_default(self) -> None:
        assert chosen("experiment=mnist_leaky", "decoder=auto") == "sum_membrane"
        assert chosen("decoder=auto", "loss=mse_count") == "spike_count"

    def test_overriding_with_the_same_loss_keeps_the_decoder(self) -> None:
        assert chosen("experiment=mnist_leaky", "loss=ce_membrane", "readout=same") == "spike_count"
        assert chosen("experiment=mnist_leaky", "data=mnist_standardized") == "spike_count"

    def test_no_decoder_without_labels(self) -> None:
        words = ("data=sqrt", "encoder=sequence", "loss=mse_membrane")
        assert compose([*words]).decoder is None
        assert compose([*words, "decoder=null"]).decoder is None
        assert compose(["experiment=mnist_rleaky_membrane", *words[:2]]).decoder is None
        assert chosen("experiment=regression_sqrt", "data=mnist", "encoder=constant") == "spike_count"

    def test_overrides_of_a_modified_config_compose_to_it(self) -> None:
        cfg = compose(["experiment=mnist_leaky"])
        cfg.loss = {"_target_": "snnexp.losses.NLLMaxVoltage"}
        cfg.decoder = {"_target_": "snnexp.decoders.Population", "size": 10}
        recomposed = compose(config.overrides_of(cfg))
        assert (recomposed.loss, recomposed.decoder) == (cfg.loss, cfg.decoder)

    @pytest.mark.parametrize("group", ["measure", "regularizer"])
    def test_null_equals_none(self, group: str) -> None:
        assert compose([f"{group}=null"])[group] == compose([f"{group}=none"])[group] == {}

    def test_note_about_a_replaced_decoder(self) -> None:
        cfg, _ = config.compose_unchecked(["experiment=mnist_leaky", "loss=nll_max_voltage"])
        line = "decoder: max_membrane, the default for the command-line overrides, replaces spike_count of the recipe"
        assert config.decoder_note(cfg) == line
        for words in (["experiment=mnist_leaky"], ["experiment=mnist_leaky", "loss=mse_count"], ["loss=mse_membrane"]):
            assert config.decoder_note(config.compose_unchecked(words)[0]) is None

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (
                ["decoder=first_spike", "readout=leaky_integrator"],
                "decoder: FirstSpike reads spikes and this readout never fires; use decoder=mean_membrane or ",
            ),
            (["decoder=null"], "decoder: got null, these data have labels; use decoder=spike_count or mean_membrane"),
            (
                ["experiment=regression_sqrt", "decoder=max_membrane"],
                "decoder: MaxMembrane decodes labels, these data have trace; use decoder=null",
            ),
            (["decoder=each_step"], "decoder: EachStep decodes step_labels, these data have labels; use "),
            (["decoder=spike_count", "decoder.ties=highest"], "decoder.ties: got highest, must be one of"),
            (["decoder=population", "decoder.size=0"], "decoder.size: got 0, must be"),
            (["~decoder"], "decoder: cannot be deleted; decoder=null disables it"),
            (["decoder=spikecount"], "decoder=spikecount: no such choice, did you mean spike_count?"),
            (
                ["loss=mse_count", "readout=leaky_integrator"],
                "loss: MSECount reads spikes and this readout never fires",
            ),
        ],
    )
    def test_refuses(self, words: list[str], line: str) -> None:
        with pytest.raises(ConfigError) as refused:
            compose(words)
        assert str(refused.value).startswith(line)

    @pytest.mark.parametrize(
        ("loss", "readout", "decoder"),
        [
            ("ce_membrane", "same", "spike_count"),
            ("mse_membrane", "leaky", "spike_count"),
            ("ce_membrane", "leaky_integrator", "max_membrane"),
            ("mse_count", "same", "spike_count"),
            ("nll_max_voltage", "same", "max_membrane"),
        ],
    )
    def test_saved_configs_without_a_decoder_keep_their_meaning(
        self, tmp_path: Path, loss: str, readout: str, decoder: str
    ) -> None:
        cfg = compose([f"loss={loss}", f"readout={readout}"])
        for key in ("decoder", "regularizer", "measure"):
            del cfg[key]
        OmegaConf.save(cfg, tmp_path / "config.yaml")
        saved = config.load(tmp_path / "config.yaml")
        assert decoding.decoder_name(config.plain(saved)) == decoder
        assert (saved.regularizer, saved.measure) == ({}, {})
        assert saved.decoder == compose([f"decoder={decoder}", f"loss={loss}", f"readout={readout}"]).decoder

    @pytest.mark.parametrize("choice", [*parts.by_choice("decoder")])
    def test_choices_have_the_defaults_of_their_class(self, choice: str) -> None:
        cfg, _ = config.compose_unchecked([f"decoder={choice}"])
        assert cfg.decoder == decoding.shipped_node(choice)

    @pytest.mark.usefixtures("tiny_mnist")
    @pytest.mark.parametrize(("marker", "decoder"), [("auto", SumMembrane()), ("earlier", SpikeCount())])
    def test_unresolved_decoder_is_chosen_when_parts_are_built(self, marker: str, decoder: Decoder) -> None:
        cfg = compose(["loss=ce_membrane", "network.hidden=[4]", "data.batch_size=8", "trainer=cpu"])
        cfg.decoder = marker
        assert build(config.check(cfg)).decoder == decoder


def test_decoders_read_only_their_statistics_and_work_under_vmap() -> None:
    trace = random_trace()
    for decoder in (SpikeCount(), MeanMembrane(), SumMembrane(), LastMembrane(), MaxMembrane(), FirstSpike()):
        read = {name: getattr(trace, name) for name in statistic_names(decoder.reads)}
        assert torch.equal(decoder(SimpleNamespace(**read)), decoder(trace))
        scores = torch.func.vmap(lambda parts, decoder=decoder: decoder.scores(SimpleNamespace(**parts)))
        stacked = {name: torch.stack([value, value]) for name, value in read.items()}
        assert torch.equal(scores(stacked)[1], decoder.scores(trace))


def test_summed_membrane_equals_the_most_likely_class() -> None:
    trace = random_trace()
    assert torch.equal(SumMembrane()(trace), F.log_softmax(trace.membrane, -1).sum(0).argmax(-1))
