"""How a clip moves: the settings of a morph, which refuse what cannot work before anything is decoded."""

from dataclasses import dataclass
from typing import Literal, get_args

from ddim_edit.corrections import Correction
from ddim_edit.errors import ConfigError
from ddim_edit.interpolation import How, segments
from ddim_edit.pacing import EASES, Curve, Distance, Over, even_pace, paced_positions

Metric = Literal["none", "l2", "ssim", "unet"]
Endpoints = Literal["decoded", "paste", "exact"]
Loop = Literal["none", "closed", "boomerang"]


@dataclass(frozen=True)
class Motion:
    """How a clip moves.

    Args:
        path: see `interpolation.along`; None takes slerp through two keys and squad through more.
        loop: `closed` goes on from the last key to the first, so that frame 0 follows the last one; `boomerang` comes
            back the way it went, without showing either end twice.
        pace: the distance that is the same for every step: `l2`, `ssim` (1 - SSIM), `unet` (features of the model's
            own encoder), one of your own, or `none` for equal steps of the latent.
        pilot: pictures per segment that are decoded to find the pace.
        settle: passes over the frames themselves after that, each of which evens out what the one before left and
            decodes as many pictures as the clip has.
        over: see `pacing.paced_positions`.
        ease: a curve between neighbouring keys, applied after pacing: a name in `pacing.EASES`, or one of your own.
        max_step: instead of a number of frames: as many as no step larger than this needs, in the unit of `pace`.
        endpoints: how keys meet their photos. `decoded`: as they decode. `paste`: the photo takes the place of its
            key's frame, and pops. `exact`: what decoded keys miss of their photos is added, fading from key to key.
        correct: see `corrections.corrected`.

    Raises:
        ConfigError: an unknown or impossible setting.
    """

    path: How | None = None
    loop: Loop = "none"
    pace: Metric | Distance = "l2"
    pilot: int = 17
    settle: int = 0
    over: Over = "global"
    ease: Curve | str = "linear"
    max_step: float | None = None
    endpoints: Endpoints = "decoded"
    correct: Correction = "none"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("path", self.path, (None, *get_args(How))),
            ("loop", self.loop, get_args(Loop)),
            ("pace", self.pace, (self.pace,) if callable(self.pace) else get_args(Metric)),
            ("over", self.over, get_args(Over)),
            ("ease", self.ease, EASES if isinstance(self.ease, str) else (self.ease,)),
            ("endpoints", self.endpoints, get_args(Endpoints)),
            ("correct", self.correct, get_args(Correction)),
        ):
            if value not in known:
                raise ConfigError(f"{name}={value!r} is not known; choose {', '.join(map(str, known))}")
        if self.pilot < 2:
            raise ConfigError(f"pilot={self.pilot} but a distance needs two pictures; choose 2 or more")
        if self.settle < 0:
            raise ConfigError(f"settle={self.settle} passes; choose 0 or more")
        if self.settle and self.pace == "none":
            raise ConfigError(f"settle={self.settle} needs a distance to even out; choose a pace")
        if self.max_step is not None:
            self._check_bound(self.max_step)

    def _check_bound(self, bound: float) -> None:
        if not bound > 0:
            raise ConfigError(f"max_step={bound:g}; choose a distance above 0")
        if self.pace == "none":
            raise ConfigError(f"max_step={bound:g} needs a distance to measure steps by; choose a pace")
        if self.endpoints == "paste":
            raise ConfigError(f"max_step={bound:g} cannot hold where pasted photos pop; choose endpoints exact")
        plain = (("ease", self.curve, EASES["linear"]), ("over", self.over, "global"), ("settle", self.settle, 0))
        for name, value, only in plain:
            if value != only:
                raise ConfigError(f"max_step={bound:g} says where frames lie, and {name} would too; give one of them")

    @property
    def curve(self) -> Curve:
        """The curve that `ease` names or is."""
        return EASES[self.ease] if isinstance(self.ease, str) else self.ease

    @property
    def closed(self) -> bool:
        """Whether the path leads from the last key to the first."""
        return self.loop == "closed"

    def check(self, keys: int, frames: int) -> None:
        """Refuse, before any work, what cannot become a clip.

        Raises:
            ConfigError: too few keys or frames for this motion.
        """
        if keys < 2:
            raise ConfigError(f"a morph needs two photos or more, not {keys}")
        if self.max_step is not None:  # which finds out how many frames there are
            return
        if self.loop == "boomerang" and frames % 2:
            raise ConfigError(f"frames={frames} but a boomerang has an even number; choose {frames + 1}")
        paced_positions(
            even_pace(segments(keys, closed=self.closed)), self.rows(frames), closed=self.closed, ease=self.curve
        )

    def met(self, keys: int) -> int:
        """How many keys a plan decodes to compare them with their photos."""
        return keys if self.endpoints == "exact" else 0

    def pilots(self, keys: int, frames: int) -> int:
        """How many pictures a plan decodes to find the pace; more where `max_step` asks for them."""
        if self.pace == "none":
            return 0
        parts = segments(keys, closed=self.closed)
        if self.max_step is not None:
            return parts + 1
        return parts * (self.pilot - 1) + 1 + self.settle * (self.rows(frames) + self.closed)

    def rows(self, frames: int) -> int:
        """How many different pictures a clip of so many frames shows."""
        return frames // 2 + 1 if self.loop == "boomerang" else frames
