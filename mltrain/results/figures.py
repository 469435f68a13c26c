"""Pictures as PNG files, drawn without a display."""

from pathlib import Path
from typing import TYPE_CHECKING

from mltrain.errors import MissingDependencyError, RequestError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL = (4.6, 3.4)
_DPI = 144


def figure(panels: int, more: float = 0.0) -> "Figure":
    """An empty figure with room for so many panels, and ``more`` inches of height below them.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"plots need matplotlib ({error}): pip install 'mltrain[notebook]'") from error
    rows, columns = grid(panels)
    return Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows + 0.4 + more), layout="constrained")


def grid(panels: int) -> tuple[int, int]:
    """Rows and columns of panels."""
    columns = 2 if panels == 4 else min(3, panels)
    return -(-panels // columns), columns


def save(drawn: "Figure", file: Path) -> Path:
    """Writes a figure, and the directories above it.

    Raises:
        RequestError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # A Figure made without pyplot draws with Agg and belongs to no window.
        drawn.savefig(file, dpi=_DPI, format="png")
    except OSError as error:
        raise RequestError(f"the picture {file} cannot be written: {error}; name another place") from error
    return file
