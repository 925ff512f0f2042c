"""Specifications read from the source of constructors agree with Python, and are checked when a part is called."""

import inspect
import math
import pkgutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import pytest
import torch
from annotated_types import Interval
from omegaconf import OmegaConf

from snnexp.config import check, choices, compose, compose_unchecked, instantiate
from snnexp.data import mnist_data, regression_data
from snnexp.data.prepare import prepared
from snnexp.errors import ConfigError
from snnexp.neurons import Leaky, Neuron, ParametrizedLIF
from snnexp.neurons.neuron import NeuronParameter
from snnexp.spec import checked, parts, values
from snnexp.spec.annotations import AtLeast, AtMost, Count, Fraction, Stackable
from snnexp.spec.classes import MISSING
from snnexp.spec.places import PLACES
from snnexp.spec.reader import Spec, read
from snnexp.spec.source import UnreadableError

High = Annotated[float, AtLeast("2 * low", "mV")]
UpToTwo = Annotated[float, Interval(ge=0, le=2)]
SHIPPED = [(place, target) for place in PLACES for target in parts.shipped(place)]
ARGUMENTS = [(place, target, name) for place, target in SHIPPED for name in parts.shipped(place)[target].arguments]
FORWARDED = inspect.signature(prepared).parameters
GIVEN = {(place, name) for place in PLACES for name in PLACES[place].given}


def parameters_of(real: Any, names: Iterable[str]) -> dict[str, inspect.Parameter]:
    """The parameters of a function, and the named ones of the function that it forwards ``**options`` to."""
    own = dict(inspect.signature(real).parameters)
    if own.pop("options", None) is None:
        return own
    return {**own, **{name: each for name, each in FORWARDED.items() if name in names and name not in own}}


@pytest.mark.slow
class TestShipped:
    @pytest.mark.parametrize(("place", "target"), SHIPPED)
    def test_spec_agrees_with_the_signature(self, place: str, target: str) -> None:
        spec, real = parts.shipped(place)[target], pkgutil.resolve_name(target)
        assert (spec.unread, spec.takes_all) == ("", False)
        parameters = parameters_of(real, spec.arguments)
        assert [*spec.arguments] == [*parameters]
        required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
        assert [name for name, argument in spec.arguments.items() if argument.required] == required
        for name, argument in spec.arguments.items():
            if argument.value is not MISSING:
                assert argument.value == parameters[name].default

    @pytest.mark.parametrize(("place", "target", "name"), ARGUMENTS)
    def test_every_argument_has_a_domain_that_contains_its_default(self, place: str, target: str, name: str) -> None:
        if (place, name) in GIVEN:
            return
        argument, real = parts.shipped(place)[target].arguments[name], pkgutil.resolve_name(target)
        assert argument.domain is not None
        function = real.__init__ if inspect.isclass(real) and issubclass(real, torch.nn.Module) else real
        function = function if name in inspect.signature(real).parameters else prepared
        assert str(checked.argument_annotations(function)[name].domain) == str(argument.domain), (
            "the constructor checks the same"
        )
        if not argument.required:
            annotated = values.domain(get_type_hints(function, include_extras=True)[name])
            assert annotated is not None
            assert parameters_of(real, [name])[name].default in annotated

    def test_configs_name_shipped_parts_only(self) -> None:
        groups = {group: choices(group) for group in PLACES.keys() - {"initializer"}}
        # each composition has another choice of every group
        for row in zip_longest(*groups.values()):
            chosen = {group: choice for group, choice in zip(groups, row, strict=True) if choice is not None}
            cfg, _ = compose_unchecked([f"{group}={choice}" for group, choice in chosen.items()])
            for group, choice in chosen.items():
                if choice not in ("same", "auto", "none"):
                    named = cfg[group].values() if PLACES[group].many else [cfg[group]]
                    # targets that the user must set are not shipped
                    targets = {each["_target_"] for each in named if not OmegaConf.is_missing(each, "_target_")}
                    assert targets <= parts.shipped(group).keys()

    @pytest.mark.parametrize(("place", "target"), SHIPPED)
    def test_facts_agree_with_class_attributes(self, place: str, target: str) -> None:
        spec, real = parts.shipped(place)[target], pkgutil.resolve_name(target)
        names = {"encoder": ["takes_sequences"], "loss": ["targets", "reads"], "neuron": ["spikes"]}.get(place, [])
        assert [spec.fact(name) for name in names] == [getattr(real, name) for name in names]

    def test_a_file_in_the_package_of_a_place_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A class need not be exported by the package."""
        (tmp_path / "group").mkdir()
        (tmp_path / "group" / "__init__.py").write_text("from group.one import One\n")
        for name in ("One", "Two"):
            code = f"from snnexp.neurons.neuron import Neuron\nclass {name}(Neuron): ...\n"
            (tmp_path / "group" / f"{name.lower()}.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(PLACES, "neuron", PLACES["neuron"]._replace(module="group"))
        assert parts.shipped.__wrapped__("neuron").keys() == {"group.One", "group.two.Two"}
        assert parts.is_shipped("group.two.Two", "neuron")

    def test_facts_of_data(self, tiny_mnist: Path) -> None:
        for module, name in (
            (mnist_data(str(tiny_mnist), batch_size=4), "mnist_data"),
            (regression_data("sqrt", 5), "regression_data"),
        ):
            spec = parts.of(f"snnexp.data.{name}")
            for fact in ("target", "sequences", "inputs", "outputs"):
                assert spec.fact(fact) == getattr(module, fact)


PACKAGE = {
    "apkg/__init__.py": "from .neurons import Plain as Renamed\nfrom .more import *\nraise RuntimeError('imported')\n",
    "apkg/types.py": """
        from typing import Annotated
        from annotated_types import Interval
        Wide = Annotated[float, Interval(ge=0, le=2)]
        Also = Wide
    """,
    "apkg/neurons.py": """
        import typing as t
        from dataclasses import dataclass, field
        from functools import lru_cache
        import annotated_types
        import torch
        import snnexp.neurons
        from snnexp.neurons.neuron import Neuron, NeuronParameter
        from snnexp.spec.annotations import AtMost, Count
        from snnexp.spec.parts import part
        from snnexp.surrogates import Surrogate
        from .types import Also
        from unknown import decorate

        if t.TYPE_CHECKING:
            from snnexp.spec.annotations import Positive

        class Plain(Neuron):
            '''One.

            Args:
                features: given.
                beta: how much stays,
                    in a step.
            '''
            spikes = False

            def __init__(self, features, beta: NeuronParameter[Also] = 1.8, size: "Count" = 3, rate: "Positive" = 2):
                super().__init__(features)

        class Inherits(Plain):
            pass

        class PassesOn(snnexp.neurons.Leaky):
            def __init__(self, features, extra: bool = False, **kwargs):
                super().__init__(features, threshold=2.0, **kwargs)

        class Open(snnexp.neurons.Leaky):
            def __init__(self, **kwargs):
                self.options = kwargs

        @dataclass(frozen=True)
        class Numbers(Surrogate):
            low: t.Annotated[float, annotated_types.Ge(0)]
            high: float = field(default=1.0)
            steps: Count | None = None
            kind: t.ClassVar[str] = "x"

        @dataclass(frozen=True)
        class More(Numbers):
            also: t.Literal["a", "b"] = "a"

        @part(target="trace", outputs=2)
        @lru_cache
        def data(mode: t.Literal["x"], n: Count = 2 + 1):
            return None

        @decorate
        class Decorated:
            def __init__(self, a: Count = 1): ...

        class Made(metaclass=type):
            def __init__(self, a: Count = 1): ...

        class New:
            def __new__(cls, a: int = 1): ...

        class Torchs(torch.nn.Linear):
            pass

        try:
            class Maybe:
                def __init__(self, a: Count = 1): ...
        except ImportError:
            pass

        class Odd:
            def __init__(self, a: unknown_name = 1, b: Count = 1): ...
    """,
    "apkg/more.py": "from apkg.neurons import More as Starred\n_hidden = 1\n",
    "apkg/deep/inner.py": "from ..neurons import Plain\nAlias = Plain\n",
    "apkg/lazy.py": "def __getattr__(name):\n    raise AttributeError\n",
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("outside")
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder
    assert not [name for name in sys.modules if name.startswith("apkg")], "nothing is imported"


def domains(spec: Spec) -> dict[str, str]:
    return {name: str(argument.domain) for name, argument in spec.arguments.items()}


@pytest.mark.usefixtures("package")
class TestReading:
    @pytest.mark.parametrize("name", ["neurons.Plain", "neurons.Inherits", "Renamed", "deep.inner.Alias"])
    def test_all_names_of_a_class(self, name: str) -> None:
        spec = read(f"apkg.{name}")
        assert spec.unread == ""
        assert domains(spec) == {
            "features": "None",
            "beta": "a finite number from 0 to 2, or an initializer",
            "size": "a whole number of at least 1, below 2^31",
            "rate": "a finite number greater than 0",
        }
        assert [argument.default for argument in spec.arguments.values()] == [None, "1.8", "3", "2"]
        assert spec.arguments["beta"].stackable
        assert not spec.arguments["size"].stackable
        assert spec.arguments["beta"].kinds == ("snnexp.initializers.Initializer",)
        assert "snnexp.neurons.neuron.Neuron" in spec.bases
        assert spec.fact("spikes") is False
        assert spec.fact("synapse_bias") is True, "inherited"

    def test_docstrings(self) -> None:
        spec = read("apkg.neurons.Plain")
        assert (spec.doc, spec.arguments["beta"].doc) == ("One.", "how much stays, in a step.")

    def test_a_constructor_that_forwards_kwargs(self) -> None:
        spec = read("apkg.neurons.PassesOn")
        assert (spec.unread, spec.takes_all) == ("", False)
        assert {"features", "extra", "beta", "reset"} <= spec.arguments.keys()
        assert "threshold" not in spec.arguments, "already passed"

    def test_a_constructor_that_accepts_any_argument(self) -> None:
        assert read("apkg.neurons.Open").takes_all

    def test_dataclasses(self) -> None:
        spec = read("apkg.Starred")
        assert [*spec.arguments] == ["low", "high", "steps", "also"]
        assert spec.arguments["low"].required
        assert spec.arguments["high"].value == 1.0
        assert str(spec.arguments["also"].domain) == "one of a, b"
        assert "snnexp.surrogates.Surrogate" in spec.bases

    def test_a_marked_function(self) -> None:
        spec = read("apkg.neurons.data")
        assert [spec.fact(name) for name in ("target", "outputs", "inputs")] == ["trace", 2, MISSING]
        assert (spec.arguments["n"].value, spec.arguments["n"].default) == (3, "2 + 1")

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("neurons.Decorated", "no module unknown is installed"),
            ("neurons.Made", "metaclass"),
            ("neurons.New", "creates its constructor at runtime"),
            ("neurons.Torchs", "its constructor is inherited from torch.nn.Linear"),
            ("neurons.Maybe", "or in a branch"),
            ("neurons.Missing", "does not define Missing"),
            ("lazy.Anything", "defines a module __getattr__"),
            ("nowhere.Anything", "no source file of apkg.nowhere was found"),
        ],
    )
    def test_unreadable_parts_accept_any_argument_and_give_a_reason(self, name: str, why: str) -> None:
        spec = read(f"apkg.{name}")
        assert (spec.takes_all, spec.arguments) == (True, {})
        assert why in spec.unread

    def test_an_unreadable_annotation(self) -> None:
        spec = read("apkg.neurons.Odd")
        assert (spec.unread, domains(spec)["a"]) == ("", "None")
        assert domains(spec)["b"] == "a whole number of at least 1, below 2^31"

    def test_a_missing_package(self) -> None:
        assert read("not_there.Part").unread == "no module not_there is installed"


def test_an_editable_install_is_found_by_its_finder(tmp_path: Path) -> None:
    """setuptools installs a finder in ``sys.meta_path`` that locates the source."""
    (tmp_path / "src" / "edited").mkdir(parents=True)
    (tmp_path / "src" / "edited" / "__init__.py").write_text("raise RuntimeError\n")
    (tmp_path / "src" / "edited" / "parts.py").write_text("class A:\n    def __init__(self, n: int = 1): ...\n")
    code = f"""
import importlib.machinery, importlib.util, sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "edited":
            file = {str(tmp_path / "src" / "edited" / "__init__.py")!r}
            return importlib.util.spec_from_file_location(name, file, submodule_search_locations=[file[:-12]])
sys.meta_path.append(Finder)
from snnexp.spec.reader import read
print([*read("edited.parts.A").arguments], "torch" in sys.modules, "edited" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "['n'] False False\n", done.stderr


class TestRelations:
    def test_constructor_and_config_check_the_same_bounds(self) -> None:
        with pytest.raises(ConfigError, match=r"^tau_syn_inv: an initial value is 200, must be at most 100$"):
            ParametrizedLIF(3, tau_mem_inv=50, dt=0.01)
        with pytest.raises(ConfigError, match=r"^neuron.tau_syn_inv: an initial value is 200, must be at most 100$"):
            compose(["experiment=mnist_parametrized_lif", "neuron.dt=0.01", "neuron.tau_mem_inv=50"])

    def test_messages_contain_bound_and_unit(self) -> None:
        @checked.checked
        def function(low: float, high: High = 5, n: Annotated[int, AtMost("high")] = 1) -> None: ...

        function(1, 2, 2)
        with pytest.raises(ConfigError, match=r"^high: got 1 mV, must be at least 2 \* low = 4 mV$"):
            function(2, 1)
        with pytest.raises(ConfigError, match=r"^n: got 3, must be at most high = 2$"):
            function(1, 2, 3)


class TestCalls:
    def test_arguments_are_checked_against_annotations(self) -> None:
        with pytest.raises(ConfigError) as refused:
            Leaky(3, beta=1.5, reset="hard", learn_beta=1)  # type: ignore[arg-type]
        assert refused.value.args == (
            "beta: got 1.5, must be a finite number from 0 to 1, or an initializer",
            "learn_beta: got 1, must be true or false",
            "reset: got hard, must be one of subtract, zero, none",
        )

    def test_drawn_values_are_checked_against_the_annotation_of_their_class(self) -> None:
        class Wide(Neuron):
            @checked.checked
            def __init__(
                self, features: int, beta: NeuronParameter[Annotated[float, Interval(ge=0, le=2)]] = 1.8
            ) -> None:
                super().__init__(features)
                self.add_parameter("beta", beta)

        torch.testing.assert_close(
            Wide(3, beta=torch.tensor([1.8, 0, 2])).get_buffer("beta"), torch.tensor([1.8, 0, 2])
        )
        with pytest.raises(ConfigError, match=r"^beta: an initial value is 3, must be a finite number from 0 to 2$"):
            Wide(3, beta=torch.tensor(3.0))


@pytest.mark.parametrize(
    ("annotation", "accepted", "refused"),
    [
        (Fraction, [0, 1, 0.5], [-0.1, 1.1, math.nan, True, "0.5"]),
        (Count | None, [1, None], [0, 2.5, False]),
        (Literal["a", "b"], ["a"], ["c", None, 1]),
        (Literal["a"] | None, ["a", None], ["b"]),
        (list[Count], [[], [1, 2]], [[0], 1, None]),
        (tuple[Fraction, Fraction], [[0, 1]], [[0], [0, 2], [0, 0, 0]]),
        (dict[str, float], [{}, {"a": 1}], [{"a": "b"}, []]),
        (NeuronParameter[Fraction], [0.5, torch.tensor(5.0), {"_target_": "x"}], [2, None, "a"]),
        (Stackable[Fraction], [0.5], [2]),
        (bool | None, [True, None], [0, 1]),
        (float | int, [1, 0.5], [math.inf]),
    ],
    ids=str,
)
def test_domains_of_annotations(annotation: Any, accepted: list[Any], refused: list[Any]) -> None:
    domain = values.domain(annotation)
    assert domain is not None
    assert [value for value in accepted if value not in domain] == []
    assert [value for value in refused if value in domain] == []


@pytest.mark.parametrize("annotation", [Any, object, Literal[1, 2], tuple[int, str], list[Any], int | Any])
def test_unsupported_annotations_are_not_checked(annotation: Any) -> None:
    assert values.domain(annotation) is None


def test_reading_imports_nothing_heavy() -> None:
    code = "import sys; from snnexp.spec.parts import shipped; from snnexp.spec.places import PLACES; "
    code += "[shipped(place) for place in PLACES]; print([m for m in ('torch', 'lightning') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# arguments that both the check and the constructor must accept
ACCEPTED: dict[str, tuple[str, dict[str, Any]]] = {
    "kwargs that the constructor uses": (
        """
        class B:
            def __init__(self, beta: float): ...
        class A(B):
            def __init__(self, **kwargs):
                kwargs.setdefault("beta", 1.0)
                self.gain = kwargs.pop("gain", 1.0)
                super().__init__(**kwargs)
        """,
        {"gain": 2.0},
    ),
    "all arguments forwarded": (
        """
        class B:
            def __init__(self, beta: float = 1.0): ...
        class A(B):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
        """,
        {"beta": 0.5},
    ),
    "the next constructor of several bases": (
        """
        class B:
            def __init__(self, x: float = 1.0): ...
        class First: ...
        class Second: ...
        class A(First, Second, B):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
        """,
        {"x": 2.0},
    ),
    "fields that are not in the constructor": (
        """
        from dataclasses import KW_ONLY, dataclass, field
        from typing import ClassVar as CV
        @dataclass
        class A:
            table: CV[dict]
            beta: float = 1.0
            twice: float = field(init=False)
            _: KW_ONLY
            gain: float = 2.0
        """,
        {"beta": 0.5},
    ),
    "final": (
        """
        from typing import final
        class B:
            def __init__(self, gain: float = 1.0): ...
        @final
        class A(B):
            size: int
        """,
        {"gain": 0.5},
    ),
    "fields of a base that is not read": (
        """
        from dataclasses import dataclass
        from torch.distributed.fsdp import MixedPrecision
        @dataclass
        class A(MixedPrecision):
            beta: float = 1.0
        """,
        {"keep_low_precision_grads": True},
    ),
    "a constructor that is assigned": (
        """
        def init(self, gain: float): ...
        class A:
            def __init__(self, beta: float = 1.0): ...
            __init__ = init
        """,
        {"gain": 0.5},
    ),
    "a constructor that is assigned later": (
        """
        class A:
            def __init__(self, beta: float = 1.0): ...
        def new(self, gain: float): ...
        A.__init__ = new
        """,
        {"gain": 0.5},
    ),
    "a decorator of the constructor": (
        """
        def percent(function):
            def call(self, gain): function(self, gain / 100)
            return call
        class A:
            @percent
            def __init__(self, beta: float = 1.0): ...
        """,
        {"gain": 50},
    ),
    "a metaclass of a base": (
        """
        class Meta(type):
            def __call__(cls, gain): return super().__call__()
        class B(metaclass=Meta): ...
        class A(B):
            def __init__(self, beta: float = 1.0): ...
        """,
        {"gain": 0.5},
    ),
    "a base of the same name": (
        """
        from snnexp.losses import MSEMembrane as A
        class A(A):
            def __init__(self, gain: float = 1.0): super().__init__()
        """,
        {"gain": 0.5},
    ),
    "a name that changes": (
        """
        Rate = float
        Rate |= str
        class A:
            def __init__(self, beta: Rate = 1.0): ...
        """,
        {"beta": "fast"},
    ),
    "a name that the class body binds": (
        """
        from typing import Literal
        Mode = Literal["slow"]
        class A:
            Mode = Literal["fast"]
            def __init__(self, mode: Mode = "fast"): ...
        """,
        {"mode": "fast"},
    ),
    "bare and odd annotations": (
        """
        from typing import Dict, List, Optional, Sequence, Tuple
        class A:
            def __init__(self, a: Tuple = (), b: List = [], c: Sequence = (), d: Dict = {}, e: Optional[List] = None,
                         f: [float] = 1, g: {"a": 1} = 1, h: tuple[()] = ()): ...
        """,
        {"a": [1], "b": [2], "c": [3], "d": {"x": 1}, "e": [4], "f": 5, "g": 6, "h": []},
    ),
    "a union of numbers": (
        """
        from snnexp.spec.annotations import Count, Fraction
        class A:
            def __init__(self, size: Count | Fraction = 1): ...
        """,
        {"size": 0.25},
    ),
    "a number that a function returns": (
        """
        def half(): return 0.5
        class A:
            def __init__(self, beta: float = 1.0): assert beta == 0.5
        """,
        {"beta": {"_target_": "taken.half"}},
    ),
    "a default that its annotation does not allow": (
        """
        class A:
            def __init__(self, clip: float = float("inf"), size: int = None, seed: int = 0): ...
        """,
        {"clip": math.inf, "size": None, "seed": 2**40},
    ),
    "a constructor in addition to the fields of a base": (
        """
        from dataclasses import dataclass
        from snnexp.spec.annotations import Fraction
        @dataclass
        class B:
            rate: Fraction = 0.8
        class A(B):
            def __init__(self, rate: float = 80.0): super().__init__(rate / 100)
        """,
        {"rate": 90.0},
    ),
    "facts that are set in a branch": (
        """
        from snnexp.losses import MSEMembrane
        class A(MSEMembrane):
            if True:
                targets = ("trace",)
        """,
        {},
    ),
    "rules that use a name of the module": (
        """
        from snnexp.errors import ConfigError
        def max(*values): return 0
        class A:
            def __init__(self, beta: float = 1.0): ...
            @staticmethod
            def requires(beta):
                if max(beta, 0): raise ConfigError("beta: too big")
        """,
        {"beta": 5.0},
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_arguments_that_a_constructor_accepts_are_not_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, arguments = ACCEPTED[case]
    (tmp_path / "taken.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "taken")
    monkeypatch.delitem(sys.modules, "taken", raising=False)
    node = {"_target_": "taken.A", **arguments}
    cfg, _ = compose_unchecked(["experiment=regression_sqrt"])
    OmegaConf.update(cfg, "loss", node, merge=False)
    assert check(cfg).loss == node
    assert "taken" not in sys.modules
    instantiate(node, "loss")


@pytest.mark.parametrize(
    "default",
    ["exec(%r)", "__import__('os').system(%r)", "print(open(%r, 'w'))", "dataclasses.inspect.os.remove(%r)", "exit(3)"],
)
def test_reading_executes_no_code(default: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touched = tmp_path / "touched"
    code = f"import dataclasses\nclass A:\n    def __init__(self, beta: float = {default}): ...\n"
    (tmp_path / "evil.py").write_text(code.replace("%r", repr(str(touched))))
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = read("evil.A")
    assert spec.arguments["beta"].value is MISSING
    assert not touched.exists()


def test_a_target_with_a_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("class A:\n    @staticmethod\n    def requires(): raise SystemExit\n")
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "snnexp,apkg")
    target = f"apkg.{tmp_path}/evil.A"
    assert "is not a module name" in read(target).unread
    cfg, _ = compose_unchecked(["experiment=regression_sqrt"])
    cfg.loss = {"_target_": target}
    with pytest.raises(ConfigError, match=r"^loss\._target_: "):
        check(cfg)


def test_a_modified_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "child.py").write_text("from base import B\nclass A(B): ...\n")
    for name in ("beta", "gamma_"):
        (tmp_path / "base.py").write_text(f"class B:\n    def __init__(self, {name}: float = 1.0): ...\n")
        assert [*read("child.A").arguments] == [name]


@pytest.mark.parametrize("bound", ["abs(dt)", "dt.x", "2 ** dt", "n // 2", ""])
def test_an_invalid_bound_fails_at_its_definition(bound: str) -> None:
    with pytest.raises(ValueError, match=r"^a bound "):
        AtMost(bound)


@pytest.mark.parametrize("given", [{}, {"dt": 0}, {"dt": None}, {"dt": {"_target_": "x"}}, {"dt": True}])
def test_a_bound_without_a_value_is_ignored(given: dict[str, Any]) -> None:
    assert checked.violation("n", AtMost("1 / dt"), None, {"n": 5, **given}) is None


def test_rules_are_called_with_the_known_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of the module may have the same name as the rule, and any argument may be unknown."""
    code = """
        from snnexp.errors import ConfigError
        MOST = 3
        def draw(): return 2
        def requires(gain, most=MOST):
            if gain > most: raise ConfigError("gain: too big")
        class A:
            def __init__(self, beta: float = 1.0, rho=draw(), gain: float = 1.0): ...
            @staticmethod
            def requires(beta, rho=5.0, gain=0.0):
                requires(gain)
                if rho != 5.0: raise ConfigError("rho: taken for another")
    """
    (tmp_path / "named.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SNNEXP_ALLOW_TARGETS", "named")
    cfg, _ = compose_unchecked(["experiment=regression_sqrt"])
    for gain, refused in ((2.0, ""), (4.0, "loss.gain: too big")):
        OmegaConf.update(cfg, "loss", {"_target_": "named.A", "gain": gain}, merge=False)
        if refused:
            with pytest.raises(ConfigError, match=refused):
                check(cfg)
        else:
            check(cfg)


def test_rules_may_use_light_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import math
        from snnexp import errors
        def half(x): return math.sqrt(x) / 2
        class A:
            def __init__(self, beta: float = 1.0): ...
            @staticmethod
            def requires(beta):
                if (lambda x: half(x))(beta) > 1: raise errors.ConfigError("beta: too big")
    """
    (tmp_path / "ruled.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(str(tmp_path))
    rule = read("ruled.A").rule("requires", lambda source: True)
    assert rule is not None
    rule(4)
    with pytest.raises(ConfigError, match="beta: too big"):
        rule(5)
    with pytest.raises(UnreadableError, match="not in an allowed package"):
        read("ruled.A").rule("requires", lambda source: False)


CASUAL = """
import enum
from pathlib import Path
from typing import Callable, Optional

import numpy as np


class Way(enum.Enum):
    A = "a"


class Casual:
    def __init__(
        self, path: Path, way: Way = Way.A, n: int = None, m: Optional["Way"] = None, f: Callable[[int], str] = len,
        a: np.ndarray = None, s: "int | None" = None, t: set[int] = None, k: dict = {}, l: list = [],
    ): ...
"""


def test_annotations_of_convertible_classes_are_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "casual.py").write_text(CASUAL)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = read("casual.Casual")
    assert spec.unread == ""
    allowed = {
        "path": "a/b",
        "way": "a",
        "n": None,
        "m": None,
        "f": "len",
        "a": [1],
        "s": 3,
        "t": [1],
        "k": {},
        "l": [],
    }
    assert spec.arguments.keys() == allowed.keys()
    real = pkgutil.resolve_name("casual.Casual")
    for name, value in allowed.items():
        domain = spec.arguments[name].domain
        assert domain is None or value in domain
        checked.check(real.__init__, {name: value})
    assert [name for name, argument in spec.arguments.items() if argument.domain is not None] == ["n", "s"]
