"""What all contenders of a measurement have in common."""

import time

BATCH_TOKENS = 2048


def batches(sequences):
    """Sequences of like length together, so that little is padding."""
    batch, widest = [], 0
    for ids in sorted(sequences, key=len):
        if batch and (len(batch) + 1) * max(widest, len(ids)) > BATCH_TOKENS:
            yield batch
            batch, widest = [], 0
        batch.append(ids)
        widest = max(widest, len(ids))
    yield batch


def repeated(seconds, parts, once):
    """How much of what `once` counts for a part is done in a second; all parts equally often, and the last one
    done before the clock starts."""
    once(parts[-1])
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += sum(map(once, parts))
    return done / (time.perf_counter() - started)
