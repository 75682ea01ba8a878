"""Import PyTorch only when something is first computed with it.

Importing PyTorch takes seconds. Describing a method (building its value, printing it, comparing two) computes nothing,
so the modules that describe methods take ``torch`` from here instead of importing it, and ``limbeck methods`` answers
at once. It is used like the module itself: ``torch.exp(x)``, ``isinstance(x, torch.Tensor)``,
``torch.no_grad()``. It must not be used while a module is being imported; modules that need PyTorch at import, such
as those with a ``torch.autograd.Function``, import it as usual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:

    class _LazyTorch:
        """The module ``torch``, imported by the first use of an attribute."""

        def __getattr__(self, name: str) -> Any:
            import torch as imported  # a statement, because torch.compile can trace it

            return getattr(imported, name)

    torch = _LazyTorch()
    Tensor = "torch.Tensor"  # for annotations only, as a forward reference; elsewhere write torch.Tensor

__all__ = ["Tensor", "torch"]
