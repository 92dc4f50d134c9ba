"""mode=discover without an MLLM: image vectors are grouped, and a person names the groups on a page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fgvr.agents.cluster_kinds import cluster_kinds, from_json, name_kinds
from fgvr.agents.discover import Discovered
from fgvr.data.unlabelled import Unlabelled
from fgvr.evaluation import image_gallery, naming_page, review_page
from fgvr.session import Session
from fgvr.store.stage_cache import StageCache
from fgvr.utils.batches import batches
from fgvr.utils.files import atomic_write, short_hash
from fgvr.utils.progress import track
from fgvr.utils.text import printable


def find_kinds(session: Session, images: Unlabelled, folder: Path) -> Discovered:
    """The kinds as groups of vectors, with the names of `discover.names`, or with a page that asks for them."""
    encoder, album, asked = session.encoder, images.seen_by(session.engine.look), session.config.discover

    def grouped() -> dict[str, Any]:
        seen = batches(len(album), session.config.models.encoder.batch_size)
        encoded = session.engine.map(lambda batch: encoder.encode(album(batch)), seen)
        vectors = np.concatenate(list(track(encoded, "images", len(album), weigh=len)))
        return asdict(cluster_kinds(vectors, scale=encoder.logit_scale, count=asked.kinds, superclass=asked.superclass))

    # Kept, so that names are never those of groups that another number of threads would make a little otherwise.
    inputs = [images.content, encoder.fingerprint, asked.kinds, asked.superclass]
    found = from_json(StageCache(session.home / "kinds", inputs)(short_hash(inputs), grouped))
    run = naming_page.run_of(found, [sample.sha256 for sample in images.samples])
    if asked.names is not None:
        return name_kinds(found, naming_page.read_names(Path(asked.names).expanduser(), found, run))
    title = image_gallery.headline(found)
    page = naming_page.render(found, run, [sample.image for sample in images.samples], title=title, notes=images.notes)
    atomic_write(folder / review_page.PAGE, printable(page))
    return found
