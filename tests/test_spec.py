"""What a part is stands in its constructor: read from the source as Python sees it, and held to when it is called."""

import inspect
import math
import pkgutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Interval

from snnexp.config import choices, compose, composed
from snnexp.data import mnist_data, regression_data
from snnexp.errors import ConfigError
from snnexp.neurons import Leaky, Neuron, ParametrizedLIF
from snnexp.neurons.neuron import NeuronParameter
from snnexp.spec import checked, parts, values
from snnexp.spec.annotations import AtLeast, AtMost, Count, Fraction, Stackable
from snnexp.spec.places import PLACES
from snnexp.spec.reader import MISSING, Spec, read

High = Annotated[float, AtLeast("2 * low", "mV")]
UpToTwo = Annotated[float, Interval(ge=0, le=2)]
SHIPPED = [(place, target) for place in PLACES for target in parts.shipped(place)]
ARGUMENTS = [(place, target, name) for place, target in SHIPPED for name in parts.shipped(place)[target].arguments]
GIVEN = {(place, name) for place in PLACES for name in PLACES[place].given}


class TestShipped:
    @pytest.mark.parametrize(("place", "target"), SHIPPED)
    def test_is_read_as_python_sees_it(self, place: str, target: str) -> None:
        spec, real = parts.shipped(place)[target], pkgutil.resolve_name(target)
        assert (spec.unread, spec.takes_all) == ("", False)
        parameters = inspect.signature(real).parameters
        assert [*spec.arguments] == [*parameters]
        required = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
        assert [name for name, argument in spec.arguments.items() if argument.required] == required
        for name, argument in spec.arguments.items():
            if argument.value is not MISSING:
                assert argument.value == parameters[name].default

    @pytest.mark.parametrize(("place", "target", "name"), ARGUMENTS)
    def test_every_argument_has_a_domain_in_which_its_default_lies(self, place: str, target: str, name: str) -> None:
        if (place, name) in GIVEN:
            return
        argument, real = parts.shipped(place)[target].arguments[name], pkgutil.resolve_name(target)
        assert argument.domain is not None
        function = real.__init__ if inspect.isclass(real) and issubclass(real, torch.nn.Module) else real
        assert str(checked.taken(function)[name].domain) == str(argument.domain), "the constructor checks the same"
        if not argument.required:
            assert inspect.signature(real).parameters[name].default in argument.domain

    def test_are_all_that_a_config_names(self) -> None:
        for group in PLACES.keys() - {"initializer"}:
            for choice in choices(group):
                if choice != "same":
                    cfg = composed([f"{group}={choice}"])[0]
                    assert cfg[group]["_target_"] in parts.shipped(group)

    @pytest.mark.parametrize(("place", "target"), SHIPPED)
    def test_says_what_others_need_to_know(self, place: str, target: str) -> None:
        spec, real = parts.shipped(place)[target], pkgutil.resolve_name(target)
        names = {"encoder": ["takes_sequences"], "loss": ["targets", "reads"], "neuron": ["spikes"]}.get(place, [])
        assert [spec.fact(name) for name in names] == [getattr(real, name) for name in names]

    def test_says_what_data_hold(self, tiny_mnist: Path) -> None:
        for module, name in (
            (mnist_data(str(tiny_mnist), batch_size=4), "mnist_data"),
            (regression_data("sqrt", 5), "regression_data"),
        ):
            spec = parts.of(f"snnexp.data.{name}")
            for fact in ("target", "sequences", "inputs", "outputs"):
                assert spec.fact(fact) == getattr(module, fact)


PACKAGE = {
    "mypkg/__init__.py": "from .neurons import Plain as Renamed\nfrom .more import *\nraise RuntimeError('imported')\n",
    "mypkg/types.py": """
        from typing import Annotated
        from annotated_types import Interval
        Wide = Annotated[float, Interval(ge=0, le=2)]
        Also = Wide
    """,
    "mypkg/neurons.py": """
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
    "mypkg/more.py": "from mypkg.neurons import More as Starred\n_hidden = 1\n",
    "mypkg/deep/inner.py": "from ..neurons import Plain\nAlias = Plain\n",
    "mypkg/lazy.py": "def __getattr__(name):\n    raise AttributeError\n",
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
    assert not [name for name in sys.modules if name.startswith("mypkg")], "nothing was imported"


def domains(spec: Spec) -> dict[str, str]:
    return {name: str(argument.domain) for name, argument in spec.arguments.items()}


@pytest.mark.usefixtures("package")
class TestReading:
    @pytest.mark.parametrize("name", ["neurons.Plain", "neurons.Inherits", "Renamed", "deep.inner.Alias"])
    def test_a_class_however_it_is_named(self, name: str) -> None:
        spec = read(f"mypkg.{name}")
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
        assert spec.arguments["beta"].kind == "snnexp.initializers.Initializer"
        assert "snnexp.neurons.neuron.Neuron" in spec.bases
        assert spec.fact("spikes") is False
        assert spec.fact("synapse_bias") is True, "as the base has it"

    def test_what_a_docstring_says(self) -> None:
        spec = read("mypkg.neurons.Plain")
        assert (spec.doc, spec.arguments["beta"].doc) == ("One.", "how much stays, in a step.")

    def test_a_constructor_that_passes_the_rest_on(self) -> None:
        spec = read("mypkg.neurons.PassesOn")
        assert (spec.unread, spec.takes_all) == ("", False)
        assert {"features", "extra", "beta", "reset"} <= spec.arguments.keys()
        assert "threshold" not in spec.arguments, "it is given already"

    def test_a_constructor_that_takes_anything(self) -> None:
        assert read("mypkg.neurons.Open").takes_all

    def test_dataclasses(self) -> None:
        spec = read("mypkg.Starred")
        assert [*spec.arguments] == ["low", "high", "steps", "also"]
        assert spec.arguments["low"].required
        assert spec.arguments["high"].value == 1.0
        assert str(spec.arguments["also"].domain) == "one of a, b"
        assert "snnexp.surrogates.Surrogate" in spec.bases

    def test_a_function_that_is_marked(self) -> None:
        spec = read("mypkg.neurons.data")
        assert [spec.fact(name) for name in ("target", "outputs", "inputs")] == ["trace", 2, MISSING]
        assert (spec.arguments["n"].value, spec.arguments["n"].default) == (3, "2 + 1")

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("neurons.Decorated", "no module unknown is installed"),
            ("neurons.Made", "metaclass"),
            ("neurons.New", "makes its constructor when it runs"),
            ("neurons.Torchs", "its constructor is that of torch.nn.Linear"),
            ("neurons.Maybe", "is bound in a branch"),
            ("neurons.Missing", "has no Missing"),
            ("lazy.Anything", "makes its names when they are asked for"),
            ("nowhere.Anything", "there is no source of mypkg.nowhere"),
        ],
    )
    def test_what_cannot_be_read_takes_anything_and_says_why(self, name: str, why: str) -> None:
        spec = read(f"mypkg.{name}")
        assert (spec.takes_all, spec.arguments) == (True, {})
        assert why in spec.unread

    def test_what_cannot_be_read_of_one_argument(self) -> None:
        spec = read("mypkg.neurons.Odd")
        assert (spec.unread, domains(spec)["a"]) == ("", "None")
        assert domains(spec)["b"] == "a whole number of at least 1, below 2^31"

    def test_a_package_that_is_not_there(self) -> None:
        assert read("not_there.Part").unread == "no module not_there is installed"


def test_an_editable_install_is_found_by_its_finder(tmp_path: Path) -> None:
    """As setuptools makes them: a finder in ``sys.meta_path`` that knows where the source lies."""
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
    def test_are_held_by_constructor_and_config_alike(self) -> None:
        with pytest.raises(ConfigError, match=r"^tau_syn_inv: a start value is 200, must be at most 100$"):
            ParametrizedLIF(3, tau_mem_inv=50, dt=0.01)
        with pytest.raises(ConfigError, match=r"^neuron.tau_syn_inv: a start value is 200, must be at most 100$"):
            compose(["experiment=mnist_parametrized_lif", "neuron.dt=0.01", "neuron.tau_mem_inv=50"])

    def test_say_the_bound_and_its_unit(self) -> None:
        @checked.checked
        def function(low: float, high: High = 5, n: Annotated[int, AtMost("high")] = 1) -> None: ...

        function(1, 2, 2)
        with pytest.raises(ConfigError, match=r"^high: got 1 mV, must be at least 2 \* low = 4 mV$"):
            function(2, 1)
        with pytest.raises(ConfigError, match=r"^n: got 3, must be at most high = 2$"):
            function(1, 2, 3)


class TestCalls:
    def test_values_are_held_against_annotations(self) -> None:
        with pytest.raises(ConfigError) as refused:
            Leaky(3, beta=1.5, reset="hard", learn_beta=1)  # type: ignore[arg-type]
        assert refused.value.args == (
            "beta: got 1.5, must be a finite number from 0 to 1, or an initializer",
            "learn_beta: got 1, must be true or false",
            "reset: got hard, must be one of subtract, zero, none",
        )

    def test_drawn_values_are_held_to_the_annotation_of_their_own_class(self) -> None:
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
        with pytest.raises(ConfigError, match=r"^beta: a start value is 3, must be a finite number from 0 to 2$"):
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
def test_what_an_annotation_does_not_say_is_not_checked(annotation: Any) -> None:
    assert values.domain(annotation) is None


def test_the_reader_is_light() -> None:
    code = "import sys; from snnexp.spec.parts import shipped; from snnexp.spec.places import PLACES; "
    code += "[shipped(place) for place in PLACES]; print([m for m in ('torch', 'lightning') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


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


def test_annotations_that_a_constructor_may_mean_otherwise_refuse_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
