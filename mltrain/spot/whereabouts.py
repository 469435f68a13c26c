"""Where this process runs, without asking the network: what the machine's firmware says of itself.

The values are those that cloud-init's ds-identify looks for.
"""

import os
from collections.abc import Mapping
from pathlib import Path

_AZURE_CHASSIS = "7783-7084-3265-9085-8269-3286-77"


def found(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Names of what may give notice here: ``aws``, ``gcp`` or ``azure``, and ``kubernetes``; empty: nobody."""
    here = []
    if _dmi(root, "sys_vendor") == "Amazon EC2" or _dmi(root, "product_uuid").lower().startswith("ec2"):
        here.append("aws")
    elif _dmi(root, "product_name") == "Google Compute Engine":
        here.append("gcp")
    elif _dmi(root, "chassis_asset_tag") == _AZURE_CHASSIS:
        here.append("azure")
    if "KUBERNETES_SERVICE_HOST" in environment:
        here.append("kubernetes")
    return tuple(here)


def _dmi(root: Path, name: str) -> str:
    """A field of the firmware's tables; empty where there is none, or only root may read it."""
    try:
        return (root / "sys" / "class" / "dmi" / "id" / name).read_text().strip()
    except OSError:
        return ""
