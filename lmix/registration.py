"""Register mixed policies with transformers' Auto classes as soon as transformers is imported, and not before."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class AfterTransformers(MetaPathFinder):
    """Finds transformers like the other finders, and imports `lmix.model` directly after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "transformers":
            return None
        finders = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in finders if spec is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = self.then_register(loader.exec_module)
        return spec

    def then_register(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            import_module("lmix.model")

        return execute_and_register


def register_with_transformers() -> None:
    """Make `AutoModelForCausalLM.from_pretrained` load folders of `lmix export`, without importing transformers here.

    A program that has not imported transformers does not wait for it.
    """
    if "transformers" in sys.modules:
        import_module("lmix.model")
    else:
        sys.meta_path.insert(0, AfterTransformers())
