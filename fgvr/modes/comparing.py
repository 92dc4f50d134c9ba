"""mode=compare: finished runs beside each other. No model is asked."""

from dataclasses import asdict

from fgvr.errors import ConfigError
from fgvr.evaluation import compare as comparing
from fgvr.modes.showing import to_json, to_text
from fgvr.session import Session
from fgvr.utils.paths import user_path


def compare(session: Session) -> comparing.Comparison:
    """Finished runs beside each other, paired by image; nothing is computed anew."""
    runs = session.config.runs
    given = [runs] if isinstance(runs, str) else runs
    if not given:
        raise ConfigError("runs=[]: give the folders of two runs, as in runs=[A,B], or of one sweep")
    return comparing.compare([user_path(run) for run in given])


to_json.register(comparing.Comparison, asdict)  # an interval over a single seed is null
to_text.register(comparing.Comparison, comparing.tables)
