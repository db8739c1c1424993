"""torch: the float model beside which an artifact is timed, as a session of the probe's functions, so that both are timed alike.

No target can choose it, and it is no entry of RUNTIMES: it runs a module that is loaded, no artifact's file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from edgekit.runtimes.request import Arrays

__all__ = ["Session"]


class Session:
    """A loaded module that answers with rows."""

    def __init__(self, module: Callable[..., torch.Tensor]) -> None:
        """module: inputs by name -> [batch, width]."""
        self._module = module

    def run(self, prompt: Arrays) -> NDArray[np.float32]:
        """The output [width] for one prompt."""
        import numpy as np
        import torch

        inputs = {name: torch.from_numpy(array[None]) for name, array in prompt.items()}
        with torch.inference_mode():
            return np.asarray(self._module(**inputs)[0].float().numpy(), dtype=np.float32)
