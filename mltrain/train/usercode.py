"""Model factories: found by name, by file or as a function; shipped to workers, kept with the run, known by hash."""

import ast
import hashlib
import importlib
import importlib.util
import json
import linecache
import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mltrain.errors import ConfigError, DamagedError, MissingDependencyError, MltrainError, RequestError, TrainingError
from mltrain.storage.parsing import parse_object

if TYPE_CHECKING:
    from torch import nn

    from mltrain.storage import Store

Factory = Callable[..., "nn.Module"]
# What user code raises is its failure, `sys.exit` too; an interrupt comes from outside.
RAISED = (Exception, SystemExit, GeneratorExit)


@dataclass(frozen=True)
class Shipped:
    """A factory that travels.

    Attributes:
        kind: ``module`` (importable everywhere), ``file`` (source text) or ``pickle`` (cloudpickle of a function).
        name: ``package.module:function``; ``file.py:function``; a function's name.
        content: source or pickle; empty for modules.
        directory: where the file lay, so that it can import its neighbours where they exist.
    """

    kind: str
    name: str
    content: bytes = b""
    directory: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of what the factory is made of."""
        return hashlib.sha256(self.kind.encode() + b"\0" + self.name.encode() + b"\0" + self.content).hexdigest()

    def load(self) -> Factory:
        """The function.

        Raises:
            ConfigError: it does not exist.
            TrainingError: its code raised.
        """
        if self.kind == "pickle":
            import cloudpickle  # type: ignore[import-untyped]

            return cast(Factory, cloudpickle.loads(self.content))
        module, function = self.name.rsplit(":", 1)
        loaded = importlib.import_module(module) if self.kind == "module" else self._execute(module)
        found = getattr(loaded, function, None)
        if not callable(found):
            raise ConfigError(f"model.factory: {module} has no function {function!r}")
        return cast(Factory, found)

    def keep(self, run: "Store") -> None:
        """Stores the code with a new run, or compares it with that of a run that is resumed.

        Raises:
            RequestError: it is not the code that the run was created with.
            DamagedError: what is stored of that code cannot be read.
        """
        if self.kind == "file":
            run.put_if_absent(f"code/{self.name.rsplit(':', 1)[0]}", self.content)
        if self.kind == "pickle":
            run.put_if_absent("code/factory.pkl", self.content)
        record = json.dumps({"kind": self.kind, "name": self.name, "digest": self.digest}).encode()
        if run.put_if_absent("code/factory.json", record) or self.kind == "pickle":
            # Pickles of one function differ from process to process.
            return
        try:
            kept = parse_object(run.get("code/factory.json"))
            name, digest = kept["name"], kept["digest"]
        except (ValueError, KeyError) as error:
            raise DamagedError(f"{run.join('code/factory.json')} is damaged: {error}") from error
        if digest != self.digest:
            raise RequestError(
                f"model.factory {self.name} is not the code that this run was created with ({name}, kept in "
                f"{run.join('code')}): put the old code back to resume it, or use another --run-id for a new run."
            )

    def _execute(self, filename: str) -> types.ModuleType:
        name = f"mltrain_user_{self.digest[:16]}"
        if name in sys.modules:
            return sys.modules[name]
        path = os.path.join(self.directory, filename)
        source = self.content.decode()
        # Tracebacks show source lines also where the file itself does not exist.
        linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
        if os.path.isdir(self.directory) and self.directory not in sys.path:
            sys.path.insert(0, self.directory)
        module = types.ModuleType(name)
        module.__file__ = path
        sys.modules[name] = module
        try:
            exec(compile(source, path, "exec"), module.__dict__)
        except RAISED as error:
            del sys.modules[name]
            raise TrainingError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
        return module


def ship(factory: str) -> Shipped:
    """Finds the factory that a config names: ``package.module:function`` or ``path/to/file.py:function``.

    Raises:
        ConfigError: there is no such file, module or function.
    """
    where, separator, function = factory.rpartition(":")
    if not separator or not where or not function:
        raise ConfigError(f"model.factory is {factory!r}; wanted 'file.py:function' or 'package.module:function'")
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ConfigError(f"model.factory: there is no file {where}")
        shipped = Shipped("file", f"{path.name}:{function}", path.read_bytes(), str(path.resolve().parent))
    else:
        shipped = Shipped("module", factory)
    _check(shipped)
    return shipped


def _check(shipped: Shipped) -> None:
    """Finds mistakes without importing torch, which the driver may do without: workers load the code."""
    module, function = shipped.name.rsplit(":", 1)
    if shipped.kind == "module":
        try:
            found = importlib.util.find_spec(module)
        except ImportError as error:
            raise ConfigError(f"model.factory {shipped.name!r} cannot be imported: {error}") from error
        if found is None:
            raise ConfigError(f"model.factory {shipped.name!r}: there is no module {module!r}")
        return
    try:
        tree = ast.parse(shipped.content, filename=module)
    except SyntaxError as error:
        raise ConfigError(f"model.factory: {module}, line {error.lineno}: {error.msg}") from error
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    # Anything else that binds names at the top level may bind this one: the workers will tell.
    plain = all(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.Expr) for node in tree.body)
    if plain and function not in names:
        raise ConfigError(
            f"model.factory: {module} has no function {function!r}; it has {', '.join(sorted(names)) or 'none'}"
        )


def ship_function(function: Factory) -> Shipped:
    """Ships a function, a notebook's for instance."""
    try:
        import cloudpickle
    except ImportError as error:
        raise MissingDependencyError("run(factory=...) needs cloudpickle: pip install 'mltrain[ray]'") from error
    name = getattr(function, "__qualname__", type(function).__name__)
    return Shipped("pickle", name, cloudpickle.dumps(function))


class Hook(Protocol):
    """A callback of the config: sees a run's events on the controller's side."""

    def on_event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Called for every event, in the controller's thread: it must not take long."""


def load_hook(name: str) -> Hook:
    """Makes the callback that a config names, without arguments.

    Raises:
        ConfigError: there is no such class, or its objects have no ``on_event``.
    """
    made: Any = ship(name).load()
    hook = made()
    if not callable(getattr(hook, "on_event", None)):
        raise ConfigError(f"callbacks: {name} has no on_event(kind, fields)")
    return cast(Hook, hook)


def build(shipped: Shipped, schema: Any, args: dict[str, Any]) -> "nn.Module":
    """Calls the factory.

    Raises:
        ConfigError: it does not take these arguments.
        TrainingError: it raised, ran out of memory, or did not return a module.
    """
    import inspect

    from torch import nn

    factory = shipped.load()
    try:
        inspect.signature(factory).bind(schema, **args)
    except TypeError as error:
        raise ConfigError(f"model.args do not fit {shipped.name}(schema, ...): {error}") from error
    try:
        model = factory(schema, **args)
    except MltrainError:
        raise
    except RAISED as error:
        said = str(error).strip() or ("out of memory" if isinstance(error, MemoryError) else "no message")
        raise TrainingError(
            f"{shipped.name} cannot build the model with these model.args: {type(error).__name__}: {said}"
        ) from error
    if not isinstance(model, nn.Module):
        raise TrainingError(f"{shipped.name} returned {type(model).__name__}; wanted a torch.nn.Module")
    return model
