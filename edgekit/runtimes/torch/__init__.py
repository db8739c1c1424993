"""torch: the float model beside which an artifact is timed, as a session of the probe's functions, so that both are timed alike.

No target can choose it, and it is no entry of RUNTIMES: it runs a module that is loaded, no artifact's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Ids = Sequence[int] | NDArray[np.int64]

__all__ = ["Session"]


class Session:
    """A loaded module that answers with rows."""

    def __init__(
        self,
        module: Callable[..., torch.Tensor],
        collate: Callable[[Sequence[Ids]], Mapping[str, NDArray[np.int64]]],
    ) -> None:
        """module: inputs by name -> [batch, width]; collate: texts' token ids -> the inputs."""
        self._module, self._collate = module, collate

    def run(self, ids: Ids) -> NDArray[np.float32]:
        """The output [width] for one text's token ids."""
        import numpy as np
        import torch

        inputs = {name: torch.from_numpy(array) for name, array in self._collate([ids]).items()}
        with torch.inference_mode():
            return np.asarray(self._module(**inputs)[0].float().numpy(), dtype=np.float32)
