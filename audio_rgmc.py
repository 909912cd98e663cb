"""Audio front end of RGMC: a file or an array in, the log-mel spectrogram of its middle 10 seconds out.

    features = RGMCFeatureExtractor()(["song.mp3", "video.mp4"]).input_features  # (2, 1, 1001, 64)

The paper (section 3) encodes a "10 second waveform cropped from the middle" at 48 kHz. Nothing here is random: a sound
gives the same numbers each time, alone or in a batch. The log-mel is that of CLAP's unfused checkpoints, i.e. of
`ClapFeatureExtractor(frequency_min=50, frequency_max=14000, truncation="rand_trunc", padding="repeatpad")`.

Shape letters: B clips, C channels, N samples, T mel frames, F mel bins, W samples in a frame.
"""

import contextlib
import io
import math
import os
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch

MIN_SECONDS = 0.02  # about one analysis window: less has no spectrum to speak of
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_CHANNELS = 64
MAX_PEAK = 100.0  # full scale is 1: this is no recording, but integers stored as floats
PREROLL = 0.5  # s, decoded before the wanted part and thrown away: after a seek, lossy decoders need a run-up
TAIL_PACKETS = 16  # decoded to find the end: more than any decoder's delay
# Containers, by FFmpeg's names, whose times can be believed after a seek: they number the samples (FLAC, Ogg, MP4,
# Matroska), or FFmpeg counts the packets from the start (mp3, ADTS). Where samples have a fixed size (PCM), it is the
# byte that says which one it is. Elsewhere a seek may land seconds off and say that it did not.
EXACT = {"aac", "flac", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mp3", "ogg"}
EXACT_WITH_PCM = {"aiff", "au", "caf", "w64", "wav"}
RIFF_TEXTS = re.compile(rb"(LIST.{4})INFO", re.DOTALL)
OGG_BEGINNING = re.compile(rb"OggS\0[\2\6]")  # the first page of a stream
FROM_THE_START = "decoded from its start, because the times in it are not exact"
TIME_ERROR = 0.05  # s, that the time of a frame may be off from the end of the one before

Source = str | os.PathLike | bytes | BinaryIO | dict[str, Any]
Array: TypeAlias = np.ndarray | torch.Tensor


class AudioError(ValueError):
    """A sound cannot be used. The message says which, what was found, and what would be accepted."""


class AudioWarning(UserWarning):
    """A sound is used, but may not be what was meant: it is short, silent, or silent in the mean of its channels."""

    def __init__(self, name: str, kind: str, detail: str = ""):
        super().__init__(f"{name}: {kind}{detail}")
        self.kind = kind


def load_audio(
    source: Source,
    start: float | None = None,
    duration: float = 10.0,
    sampling_rate: int = 48_000,
    stream: int | None = None,
) -> np.ndarray:
    """
    Decode `duration` seconds of a local audio or video file to mono.

    The seconds are those of a decoding of the whole file. Only the wanted ones are decoded where the file's times are
    exact; otherwise it is decoded from its start, which is announced. Fewer seconds are repeated and zero-padded as
    CLAP does, which is announced.

    Two channels are averaged, as in CLAP's training; FFmpeg's own downmix of stereo would be 3 dB louder. Surround is
    first mixed to stereo as ITU-R BS.775 says: front left and right as they are, centre and surround by -3 dB, no LFE.
    Stereo that is stored as 5.1 with silent other channels so stays as loud as it is. Of other layouts, without front
    left and right, all channels are averaged.

    Args:
        source: path, content (`bytes`), opened binary file, or the `{"path": ..., "bytes": ...}` that
            `datasets.Audio(decode=False)` gives.
        start: where the wanted part begins, in seconds. Default: such that it lies in the middle.
        duration: how much is wanted, in seconds.
        sampling_rate: rate of the result in Hz.
        stream: which of the file's audio streams, counted from 0. Default: the one marked as default, else the first.

    Returns:
        float32 samples of shape `(round(duration * sampling_rate),)`, finite, nominally in [-1, 1].

    Raises:
        AudioError: no local file, no such stream, no sound in it, damaged beyond use, NaN or infinite samples, `start`
            beyond the end.

    Warns:
        AudioWarning: less sound than wanted, digital silence, channels in opposite phase, decoded from its start.
    """
    name = _name_of(source)
    with _open_binary(source, name) as file, _stream(file, name, stream) as found:
        channels, rate = found.read(start, duration)
    return _finish(channels, rate, duration, sampling_rate, name, found.mix)


def probe_audio(source: Source) -> dict[str, Any]:
    """
    What is in an audio or video file, found by decoding its beginning, end and middle 10 s; headers are often wrong.

    Args:
        source: as in `load_audio`.

    Returns:
        `duration` (s), `sampling_rate` (Hz), `channels`, and `notes`: kinds of [`AudioWarning`] of its middle.

    Raises:
        AudioError: where `load_audio` would raise.
    """
    name = _name_of(source)
    with (
        warnings.catch_warnings(record=True) as caught,
        _open_binary(source, name) as file,
        _stream(file, name) as found,
    ):
        warnings.simplefilter("always")
        duration = found.length() / found.rate
        _finish(*found.read(None, 10.0), 10.0, 48_000, name, found.mix)
    return {
        "duration": round(duration, 3),
        "sampling_rate": found.rate,
        "channels": found.channels,
        "notes": [warning.message.kind for warning in caught if isinstance(warning.message, AudioWarning)],
    }


def prepare_waveform(
    waveform: Array,
    sampling_rate: float | None,
    start: float | None = None,
    duration: float = 10.0,
    target_sampling_rate: int = 48_000,
) -> np.ndarray:
    """
    Crop, average and resample a sound that is already decoded, exactly as `load_audio` treats a mono or stereo file. Of
    more channels an array does not say what they are: all are averaged.

    Args:
        waveform: `(N,)` or `(C, N)`, floats in [-1, 1], or integers, which are scaled by the range of their type.
        sampling_rate: rate of `waveform` in Hz; required, because an array does not carry it.
        start, duration, target_sampling_rate: as `start`, `duration` and `sampling_rate` of `load_audio`.

    Returns:
        float32 samples of shape `(round(duration * target_sampling_rate),)`, finite, nominally in [-1, 1].

    Raises:
        AudioError: no sampling rate, another shape, not real numbers, NaN or infinite samples, `start` beyond the end.
    """
    name = "<array>"
    if sampling_rate is None:
        raise AudioError(f"{name}: no sampling rate; expected sampling_rate=<Hz>, or a path, which carries its own.")
    channels = _channels_first(waveform, name)
    first, count = _window(channels.shape[1], sampling_rate, start, duration, name)
    return _finish(channels[:, first : first + count], sampling_rate, duration, target_sampling_rate, name)


def is_one_sound(audio: Any) -> bool:
    """Whether `audio` is a sound, and not several of them."""
    kinds = (str, os.PathLike, bytes, bytearray, dict, np.ndarray, torch.Tensor)
    return isinstance(audio, kinds) or hasattr(audio, "read") or not isinstance(audio, Iterable)


def _name_of(source: Any) -> str:
    """What messages call the source."""
    if isinstance(source, dict):
        source = source.get("path") or source.get("bytes")
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source))
    return "<bytes>" if isinstance(source, (bytes, bytearray)) else "<file object>"


@contextlib.contextmanager
def _open_binary(source: Any, name: str) -> Iterator[BinaryIO]:
    """The source as a file that can seek. FFmpeg never sees a path: it would take "http:" and others for a protocol."""
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (bytes, bytearray)):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        if not os.path.isfile(source):  # reading a pipe or a device might never end
            found = "not a regular file" if os.path.exists(source) else "no such file"
            raise AudioError(f"{name}: {found}; expected a local audio or video file (download a URL first).")
        try:
            file = open(source, "rb")
        except OSError as error:
            raise AudioError(f"{name}: cannot be opened ({error.strerror}); expected a readable file.") from error
        with file:
            yield file
    elif hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        if hasattr(source, "seekable") and source.seekable():
            source.seek(0)
            yield source
        else:
            yield io.BytesIO(source.read())
    else:
        raise AudioError(
            f"{type(source).__name__} given as audio; expected a path, bytes, a file opened with 'rb', "
            "the {'path': ..., 'bytes': ...} of datasets.Audio(decode=False), or an array with its sampling rate."
        )


@contextlib.contextmanager
def _stream(file: BinaryIO, name: str, index: int | None = None) -> "Iterator[_AudioStream]":
    try:
        import av
    except ImportError as error:
        raise ImportError("Reading audio files needs PyAV: pip install av") from error
    try:
        with contextlib.closing(_AudioStream(av, _FileForFFmpeg(file), name, index)) as stream:
            yield stream
    except (av.FFmpegError, OSError) as error:
        raise AudioError(f"{name}: unreadable ({error.strerror}); expected audio, or video with sound.") from error


class _FileForFFmpeg:
    """
    A file that answers a seek to before its beginning, which FFmpeg tries, by -1 and not by an exception, and without
    the texts of WAV and AVI, for which FFmpeg takes as much memory as they say, up to 2 GB, before it reads them.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.tell = file, file.tell
        self.name = str(getattr(file, "name", ""))
        self.read = self._read_riff if file.read(4) in (b"RIFF", b"RIFX", b"RF64") else file.read

    def _read_riff(self, size: int) -> bytes:
        content = self.file.read(size)
        return RIFF_TEXTS.sub(rb"\1JUNK", content) if b"INFO" in content else content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError):
            return -1


class _AudioStream:
    """
    An audio stream of a file, with a clock that counts samples.

    Sample 0 is the first one that the decoder gives; the end is behind the last one. Both are found by decoding a few
    packets, because headers are often wrong: estimated for mp3 without a Xing tag, void in streamed WAV, promising too
    much in a truncated file, and shifted by the encoder's delay where that is known (mp3, AAC, Opus).

    After a seek, a frame's time says which sample it begins with, in containers where that is `exact`. In others, and
    where times are found not to agree with the number of samples, all is decoded from the start, and counted.
    """

    container: Any = None
    stream: Any = None

    def __init__(self, av: Any, file: _FileForFFmpeg, name: str, index: int | None):
        self.av, self.file, self.name, self.index = av, file, name, index
        first = next((frame for packet in self._packets_from(None) for frame in self._decoded(packet)), None)
        if first is None or first.format.name in ("s64", "s64p"):  # PyAV has no arrays of 64-bit integers
            raise AudioError(f"{name}: nothing in it can be decoded; expected an undamaged file of a known codec.")
        self.kind = _kind_of(first)
        self.rate = first.sample_rate
        self.channels = first.layout.nb_channels
        self.mix = _mix_of([channel.name for channel in first.layout.channels])
        self.origin = first.pts or 0
        self.samples_per_tick = float(first.time_base * first.sample_rate)
        container, codec = self.container.format.name, self.stream.codec.name
        self.exact = container in EXACT or (container in EXACT_WITH_PCM and codec.startswith("pcm_"))
        if container == "ogg":
            self.exact = not self._is_chained()
        self.counted = 0  # samples in the file, once they had to be counted

    def read(self, start: float | None, duration: float) -> tuple[np.ndarray, int]:
        """`duration` seconds from `start` (default: the middle), or what there is: `(C, N)`, and the rate in Hz."""
        length, exact = self.length(), self.exact
        first, count = _window(length, self.rate, start, duration, self.name)
        for seek_to in (first - round(PREROLL * self.rate), None) if exact else (None,):
            pieces = self._pieces(seek_to, first, count)
            if exact and not self.exact:  # found out on the way
                return self.read(start, duration)
            if pieces:
                if not exact and length > count:
                    _announce(self.name, FROM_THE_START, f" ({length / self.rate:.0f} s)")
                return np.concatenate(pieces, axis=1)[:, :count], self.rate
        raise AudioError(f"{self.name}: damaged at {first / self.rate:.2f} s; expected sound that can be decoded.")

    def close(self) -> None:
        if self.container:
            self.container.close()

    def length(self) -> int:
        """Samples up to the end of the last frame that can be decoded."""
        if self.exact:
            claimed = (self.stream.duration or 0) * float(self.stream.time_base)
            claimed = claimed or (self.container.duration or 0) / 1e6
            for seek_to in (round((claimed - PREROLL) * self.rate), None):
                tail = deque(self._packets_from(seek_to), maxlen=TAIL_PACKETS)  # those before need no decoding
                end = max((position + frame.samples for position, frame in self._frames(tail, None)), default=0)
                if end and self.exact:
                    return end
                if not self.exact:
                    break
            self.exact = False
        if not self.counted:
            self.counted = sum(frame.samples for _, frame in self._frames(self._packets_from(None), 0))
        if not self.counted:
            raise AudioError(f"{self.name}: no end can be found; expected an undamaged file.")
        return self.counted

    def _is_chained(self) -> bool:
        """Whether Ogg files are joined, as in a recorded web radio: the times of each begin anew."""
        position = self.file.tell()
        self.file.seek(0)
        beginnings, end = 0, b""
        while block := self.file.read(1 << 20):
            beginnings += len(OGG_BEGINNING.findall(end + block))
            end = block[-5:]
        self.file.seek(position)
        return beginnings > len(self.container.streams)

    def _pieces(self, seek_to: int | None, first: int, count: int) -> list[np.ndarray]:
        """Decoded `(C, n)` arrays from sample `first` on, `count` samples or more. Empty if decoding began too late."""
        pieces: list[np.ndarray] = []
        for position, frame in self._frames(self._packets_from(seek_to), 0 if seek_to is None else None):
            if not pieces and position > first and seek_to is not None:
                break
            if pieces or position + frame.samples > first:
                piece = _samples_of(frame)
                pieces.append(piece if pieces else piece[:, max(first - position, 0) :])
                count -= pieces[-1].shape[1]
            if count <= 0:
                break
        return pieces

    def _frames(self, packets: Iterable[Any], position: int | None) -> Iterator[tuple[int, Any]]:
        """
        Frames, each with the sample it begins at. `position` is that of the first packet, if known. Ends early, and
        `exact` is over, where the times do not agree with the number of samples.
        """
        tick = max(self.samples_per_tick, 1)
        for packet in packets:
            for frame in self._decoded(packet):
                # Where a packet is not as long as its frame, its time is a guess: in Vorbis, where blocks get shorter.
                guessed = packet.duration and abs(packet.duration * self.samples_per_tick - frame.samples) > tick
                if self.exact and frame.pts is not None and (position is None or not guessed):
                    timed = round((frame.pts - self.origin) * self.samples_per_tick)
                    if position is not None and abs(timed - position) > TIME_ERROR * self.rate:
                        self.exact = False
                        return
                    position = timed
                # A frame of another kind comes from a damaged header and does not fit the rest.
                if position is not None and _kind_of(frame) == self.kind:
                    yield position, frame
                    position += frame.samples

    def _packets_from(self, sample: int | None) -> Iterator[Any]:
        """Packets from one at or before `sample` (None: the first one) to the end, or to where the file is broken."""
        if sample is None:  # some files cannot be sought
            self._open()
        # IndexError: PyAV does not know streams that only appear on the way, as in MPEG-TS, and stumbles at the end.
        with contextlib.suppress(self.av.FFmpegError, IndexError):
            if sample is not None:
                offset = round(sample / self.samples_per_tick) + self.origin
                self.container.seek(max(offset, 0), stream=self.stream)
            yield from self.container.demux(self.stream)

    def _decoded(self, packet: Any) -> list[Any]:
        """The frames of a packet; a damaged packet has none."""
        try:
            return packet.decode()
        except self.av.FFmpegError:
            return []

    def _open(self) -> None:
        self.close()
        self.file.seek(0)
        options = {
            # Playlists (HLS, concat, SDP) must not make FFmpeg open other files, let alone the network.
            "protocol_whitelist": "none",
            # FFmpeg looks for DTS in the first 2,500 packets of a WAV, which takes longer than all the rest.
            "max_probe_packets": "8",
        }
        self.container = self.av.open(self.file, metadata_errors="ignore", options=options)
        if not self.container.streams.audio:
            found = self.container.format.name
            raise AudioError(f"{self.name}: no audio stream in this {found} file; expected audio, or video with sound.")
        streams = self.container.streams.audio
        if self.index is not None and not 0 <= self.index < len(streams):
            found = f"{len(streams)} audio stream{'s'[: len(streams) > 1]}"
            raise AudioError(f"{self.name}: stream={self.index}, but it has {found}, counted from 0.")
        default = self.av.stream.Disposition.default
        marked = (index for index, stream in enumerate(streams) if stream.disposition & default)
        self.stream = streams[next(marked, 0) if self.index is None else self.index]
        if self.stream.codec_context is None:
            raise AudioError(f"{self.name}: its codec is unknown to FFmpeg; expected one that it can decode.")


def _mix_of(names: list[str]) -> np.ndarray | None:
    """Weight of each channel of a surround layout in the mono mix, by FFmpeg's names of them. None: all alike."""
    if len(names) <= 2 or not {"FL", "FR"} <= set(names):
        return None
    weights = {"FL": 0.5, "FR": 0.5, "LFE": 0.0, "LFE2": 0.0, "FC": math.sqrt(0.5)}
    return np.array([weights.get(name, 0.5 * math.sqrt(0.5)) for name in names], np.float32)


def _kind_of(frame: Any) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name


def _samples_of(frame: Any) -> np.ndarray:
    """`(C, n)`; packed formats come as one interleaved row."""
    samples = frame.to_ndarray()
    return samples if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).T


def _window(length: int, rate: float, start: float | None, duration: float, name: str) -> tuple[int, int]:
    """First sample and number of samples of the wanted part, at the sound's own rate."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name}: a sampling rate of {rate} Hz; expected {MIN_RATE} to {MAX_RATE} Hz.")
    if not (math.isfinite(duration) and duration >= MIN_SECONDS):
        raise AudioError(f"{name}: a duration of {duration} s was asked for; expected at least {MIN_SECONDS} s.")
    count = round(duration * rate)
    if start is None:
        return max((length - count) // 2, 0), count
    if not (math.isfinite(start) and 0 <= start * rate < length):
        raise AudioError(
            f"{name}: start={start} s lies outside; expected 0 <= start < {length / rate:.2f} s, its length."
        )
    return round(start * rate), count


def _channels_first(waveform: Array, name: str) -> np.ndarray:
    """An array of real numbers as `(C, N)`."""
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.dtype == torch.bfloat16 else waveform).numpy()
    if waveform.dtype.kind not in "iuf":
        raise AudioError(f"{name}: values of type {waveform.dtype}; expected floating-point or integer samples.")
    channels = waveform[None] if waveform.ndim == 1 else waveform
    if channels.ndim != 2 or not 0 < channels.shape[0] <= min(channels.shape[1], MAX_CHANNELS):
        raise AudioError(
            f"{name}: shape {waveform.shape}; expected (samples,) or (channels, samples), 1 to {MAX_CHANNELS} channels "
            "(transpose an array of shape (samples, channels); pass a batch as a list)."
        )
    return channels


def _finish(
    channels: np.ndarray, rate: float, duration: float, target_rate: int, name: str, mix: np.ndarray | None = None
) -> np.ndarray:
    """`(C, N)` samples of any type, already cropped, to exactly `duration` seconds of mono at `target_rate`."""
    seconds = channels.shape[1] / rate
    if seconds < MIN_SECONDS:
        raise AudioError(
            f"{name}: {channels.shape[1]} samples at {rate} Hz; expected at least {MIN_SECONDS} s of sound."
        )
    mono = _to_mono(channels, name, mix)
    if channels.shape[1] < round(duration * rate):
        _announce(name, f"shorter than {duration:g} s, repeated and zero-padded", f" ({seconds:.2f} s)")
    return _repeat_pad(_resample(mono, rate, target_rate), round(duration * target_rate))


def _announce(name: str, kind: str, detail: str = "") -> None:
    warnings.warn(AudioWarning(name, kind, detail), stacklevel=2)


def _to_mono(channels: np.ndarray, name: str, mix: np.ndarray | None = None) -> np.ndarray:
    """Mean of the channels, or their sum weighted by `mix`, float32 `(N,)`."""
    samples = _to_float32(channels)
    with np.errstate(invalid="ignore"):  # inf - inf
        # Channel by channel: numpy's mean over the short axis of interleaved samples is 20 times slower.
        if mix is None:
            mono = sum(samples[1:], start=samples[0]) / np.float32(len(samples))
        else:
            mono = sum(weight * channel for weight, channel in zip(mix, samples) if weight)
    peak = np.abs(mono).max()
    if not np.isfinite(peak):
        raise AudioError(f"{name}: NaN or infinite samples; expected finite ones in [-1, 1].")
    if peak > MAX_PEAK:
        raise AudioError(f"{name}: samples up to {peak:g}; expected floats in [-1, 1] (divide by the full scale).")
    if peak < 1e-3:
        loudest = np.abs(samples).max()
        if loudest == 0:
            _announce(name, "digital silence")
        elif peak < 1e-3 * loudest:
            _announce(name, "channels in opposite phase, their mean is silent")
    return mono


def _to_float32(samples: np.ndarray) -> np.ndarray:
    """Floats as they are; integers divided by half the range of their type, unsigned ones centred first."""
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        floats: np.ndarray = samples.astype(np.float32)
    if samples.dtype.kind == "f":
        return floats
    half_range = np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    return floats / half_range - np.float32(samples.dtype.kind == "u")


def _resample(mono: np.ndarray, rate: float, target_rate: int) -> np.ndarray:
    if rate == target_rate:
        return mono
    try:
        import soxr
    except ImportError as error:
        raise ImportError("Resampling needs soxr: pip install soxr") from error
    return soxr.resample(mono, rate, target_rate, quality="HQ")


def _repeat_pad(mono: np.ndarray, length: int) -> np.ndarray:
    """CLAP's "repeatpad": as many whole copies as fit, then zeros. Evens out a resampler's odd sample, too."""
    mono = np.tile(mono[:length], length // min(len(mono), length))
    return np.pad(mono, (0, length - len(mono)))
