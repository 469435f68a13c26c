"""What a finished dataset makes its owner look at: it is what the file asked for, and hardly what was meant."""

from mltrain.data.manifest import Manifest

TRAIN = "train"
_MOST = 0.5


def warnings(manifest: Manifest) -> tuple[str, ...]:
    """Vocabularies without a term, and features of which most ids in the train split are 0. Pure."""
    found = []
    for column in manifest.schema.features:
        seen = manifest.split(TRAIN).statistics.get(column.name)
        if column.vocabulary is None or seen is None or not seen.count:
            continue
        if column.cardinality == 1:
            found.append(
                f"the vocabulary of {column.name!r} is empty, so all of its ids are 0: no value is as frequent as "
                f"min_count says (features: {{{column.name}: {{min_count: …}}}}), or the column has none"
            )
        elif seen.zeros > _MOST * seen.count:
            found.append(
                f"{seen.zeros / seen.count:.0%} of the ids of {column.name!r} in {TRAIN} are 0, unseen or missing: "
                "lower its min_count, raise its max_size, or make it hashed"
            )
    return tuple(found)
