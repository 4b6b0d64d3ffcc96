"""Where the models of a run lie, as every process sees it."""

from rayjobs.options import EMBEDDED


def pipeline_folder(name: str) -> str:
    """The pipeline folder on this node.

    Args:
        name: A folder, or `embedded` for the one inside the package, which lies elsewhere on every node.

    Returns:
        The folder.
    """
    if name != EMBEDDED:
        return name
    from sharpening.shapes import assets

    return str(assets.pipeline_folder())
