"""
Reads a file or an array as the waveform of its middle 10 seconds.

    waveform = load_audio("song.mp3")  # float32 (480000,), mono, 48 kHz

The paper (section 3) encodes a "10 second waveform cropped from the middle" at 48 kHz. Nothing here is random: a sound
always gives the same samples.

Shape letters: `C` channels, `N` samples, `n` samples of a decoded piece.
"""

import contextlib
import io
import math
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch

MIN_SECONDS = 0.02  # about one analysis window: a shorter sound has no meaningful spectrum
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
MAX_CHANNELS = 64
MAX_PEAK = 100.0  # full scale is 1: a larger peak means integers stored as floats
PREROLL = 0.5  # s, decoded before the wanted part and dropped: after a seek, lossy decoders need a run-up
TAIL_PACKETS = 16  # decoded to find the end; more than the delay of any decoder
# Containers, by FFmpeg's names, whose times can be trusted after a seek: they number the samples (FLAC, Ogg, MP4,
# Matroska), or FFmpeg counts the packets from the start (mp3, ADTS). In PCM, where samples have a fixed size, the byte
# offset numbers them. In any other container a seek may land seconds away from where it claims to be.
EXACT = {"aac", "flac", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "mp3", "ogg"}
EXACT_WITH_PCM = {"aiff", "au", "caf", "w64", "wav"}
RIFF_TEXTS = re.compile(rb"(LIST.{4})INFO", re.DOTALL)
OGG_BEGINNING = re.compile(rb"OggS\0[\2\6]")  # the first page of a stream
FROM_THE_START = "decoded from its start, because the times in it are not exact"
OPPOSITE_PHASE = "channels in opposite phase, their mean is silent"
TIME_ERROR = 0.05  # s, by which the time of a frame may differ from the end of the frame before

Source = str | os.PathLike | bytes | BinaryIO | dict[str, Any]
Array: TypeAlias = np.ndarray | torch.Tensor


class AudioError(ValueError):
    """A sound cannot be used. The message names the sound, what was found and what was expected."""


class AudioWarning(UserWarning):
    """A sound is used but may not be what was meant: it is short, silent, or silent once its channels are averaged."""

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
    Decodes `duration` seconds of a local audio or video file to mono.

    Times count from the start of the file as a full decoding gives it. Where the file's own times are exact, only the
    wanted part is decoded; otherwise the file is decoded from its start, with a warning. A sound that is too short is
    repeated and zero-padded as in CLAP, with a warning.

    Two channels are averaged, as in CLAP's training; FFmpeg's own stereo downmix would be 3 dB louder. Surround is
    first mixed to stereo as ITU-R BS.775 says: front left and right unchanged, centre and surround at -3 dB, no LFE.
    Stereo stored as 5.1 with its other channels silent thus keeps its level. Layouts without front left and right have
    all their channels averaged.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `BinaryIO` or `dict`):
            A path, the content, an opened binary file, or the `{"path": ..., "bytes": ...}` that
            `datasets.Audio(decode=False)` gives.
        start (`float`, *optional*):
            Where the wanted part begins, in seconds. By default it is taken from the middle.
        duration (`float`, defaults to 10.0):
            Length of the wanted part in seconds.
        sampling_rate (`int`, defaults to 48000):
            Rate of the result in Hz.
        stream (`int`, *optional*):
            Number of the audio stream in the file, from 0. By default the one marked as default, else the first.

    Returns:
        `np.ndarray` of shape `(round(duration * sampling_rate),)`: float32 samples, finite, nominally in [-1, 1].

    Raises:
        `AudioError`: If there is no local file, no such stream or no sound in it, if the file is damaged beyond
        use, if samples are NaN or infinite, or if `start` is beyond the end.

    Warns:
        `AudioWarning`: If there is less sound than wanted, digital silence or channels in opposite phase, and if
        the file was decoded from its start.
    """
    return decode_audio(source, start, duration, sampling_rate, stream)[0]


def decode_audio(
    source: Source,
    start: float | None = None,
    duration: float = 10.0,
    sampling_rate: int = 48_000,
    stream: int | None = None,
) -> tuple[np.ndarray, float]:
    """Does what [`load_audio`] does, and also returns the length of the whole sound in seconds."""
    name = _name_of(source)
    with _open_binary(source, name) as file, _stream(file, name, stream) as found:
        channels, rate = found.read(start, duration)
    return _finish(channels, rate, duration, sampling_rate, name, found.mix), found.seconds


def stream_audio(source: Source, sampling_rate: int = 48_000, stream: int | None = None) -> Iterator[np.ndarray]:
    """
    Decodes a whole local audio or video file to mono, a piece at a time: the memory does not depend on its length.
    Where the sound of a film starts after its picture, silence comes first, so that times are those of the film.

    Args:
        source, stream:
            As in [`load_audio`].
        sampling_rate (`int`, defaults to 48000):
            Rate of the result in Hz.

    Yields:
        `np.ndarray` of shape `(n,)`: float32 samples that follow each other, about a second at a time.

    Raises:
        `AudioError`: As [`load_audio`] does, once decoding comes to what cannot be used.
    """
    name = _name_of(source)
    with _open_binary(source, name) as file, _stream(file, name, stream) as found:
        _check_rate(found.rate, name)
        resample = _resampler(found.rate, sampling_rate)
        late = round(found.delay() * sampling_rate)
        for first in range(0, late, sampling_rate):
            yield np.zeros(min(late - first, sampling_rate), np.float32)
        for last, samples in found.blocks():
            mono = _mix(_to_float32(samples), found.mix)
            _check_peak(np.abs(mono).max(initial=0), name)
            yield resample(mono, last)


def probe_audio(source: Source) -> dict[str, Any]:
    """
    Describes the sound of an audio or video file by decoding its beginning, its end and its middle 10 s, because
    headers are often wrong.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `BinaryIO` or `dict`):
            As in [`load_audio`].

    Returns:
        `dict`: `duration` (s), `sampling_rate` (Hz), `channels`, and `notes` with the kind of each [`AudioWarning`]
        about its middle.

    Raises:
        `AudioError`: If [`load_audio`] would raise one.
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
    Crops, averages and resamples a sound that is already decoded, exactly as [`load_audio`] does with a mono or stereo
    file. An array does not say what its channels are, so more than two are averaged as well.

    Args:
        waveform (`np.ndarray` or `torch.Tensor` of shape `(N,)` or `(C, N)`):
            Floats in [-1, 1], or integers, scaled by the range of their type.
        sampling_rate (`float`):
            Rate of `waveform` in Hz. Required, because an array does not carry it.
        start (`float`, *optional*), duration (`float`, defaults to 10.0):
            In seconds, as in [`load_audio`].
        target_sampling_rate (`int`, defaults to 48000):
            Rate of the result in Hz.

    Returns:
        `np.ndarray` of shape `(round(duration * target_sampling_rate),)`: float32 samples, finite, nominally in
        [-1, 1].

    Raises:
        `AudioError`: If there is no sampling rate, if the shape is another one, if the samples are not finite
        real numbers, or if `start` is beyond the end.
    """
    name = "<array>"
    if sampling_rate is None:
        raise AudioError(f"{name}: no sampling rate; expected sampling_rate=<Hz>, or a file that states its own")
    channels = _channels_first(waveform, name)
    first, count = _window(channels.shape[1], sampling_rate, start, duration, name)
    return _finish(channels[:, first : first + count], sampling_rate, duration, target_sampling_rate, name)


def is_one_sound(audio: Any) -> bool:
    """Whether `audio` is a single sound and not several."""
    kinds = (str, os.PathLike, bytes, bytearray, dict, np.ndarray, torch.Tensor)
    return isinstance(audio, kinds) or hasattr(audio, "read") or not isinstance(audio, Iterable)


def _name_of(source: Any) -> str:
    """The name of the source in messages."""
    if isinstance(source, dict):
        source = source.get("path") or source.get("bytes")
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source))
    return "<bytes>" if isinstance(source, (bytes, bytearray)) else "<file object>"


@contextlib.contextmanager
def _open_binary(source: Any, name: str) -> Iterator[BinaryIO]:
    """Opens the source as a seekable file. FFmpeg never sees a path: it would take "http:" for a protocol."""
    if isinstance(source, dict):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (bytes, bytearray)):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        if not os.path.isfile(source):  # reading a pipe or a device might never end
            found = "not a regular file" if os.path.exists(source) else "no such file"
            raise AudioError(f"{name}: {found}; expected a local audio or video file (download a URL first)")
        try:
            file = open(source, "rb")
        except OSError as error:
            raise AudioError(f"{name}: cannot be opened ({error.strerror}); expected a readable file") from error
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
            "the {'path': ..., 'bytes': ...} of datasets.Audio(decode=False), or an array with its sampling rate"
        )


@contextlib.contextmanager
def _stream(file: BinaryIO, name: str, index: int | None = None) -> "Iterator[_AudioStream]":
    try:
        import av
    except ImportError as error:
        raise ImportError("Reading audio files needs PyAV: `pip install av`") from error
    try:
        with contextlib.closing(_AudioStream(av, _FileForFFmpeg(file), name, index)) as stream:
            yield stream
    except (av.FFmpegError, OSError) as error:
        raise AudioError(f"{name}: unreadable ({error.strerror}); expected audio, or video with sound") from error


class _FileForFFmpeg:
    """
    A file as FFmpeg needs it.

    A seek to before the beginning returns -1 instead of raising, because FFmpeg tries such seeks. Lists of texts in WAV
    and AVI are renamed to `JUNK`: FFmpeg would allocate the size that a text claims, up to 2 GB, before reading it.
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

    Sample 0 is the first that the decoder returns; the end comes after the last. Both are found by decoding a few
    packets, because the length in a header is often wrong: estimated in mp3 without a Xing tag, empty in streamed WAV,
    too large in a truncated file, and shifted by the encoder's delay where that is known (mp3, AAC, Opus).

    `exact` says whether the time of a frame tells which sample it begins with, even after a seek. In other containers,
    and once times disagree with the number of samples, the file is decoded from its start and the samples are counted.
    """

    container: Any = None
    stream: Any = None

    def __init__(self, av: Any, file: _FileForFFmpeg, name: str, index: int | None):
        self.av, self.file, self.name, self.index = av, file, name, index
        first = next((frame for packet in self._packets_from(None) for frame in self._decoded(packet)), None)
        if first is None or first.format.name in ("s64", "s64p"):  # PyAV has no arrays of 64-bit integers
            raise AudioError(f"{name}: nothing in it can be decoded; expected an undamaged file of a known codec")
        self.kind = _kind_of(first)
        self.rate = first.sample_rate
        self.channels = first.layout.nb_channels
        self.mix = _mix_of([channel.name for channel in first.layout.channels])
        self.origin = first.pts or 0
        self.begin = float(self.origin * first.time_base)  # s
        self.samples_per_tick = float(first.time_base * first.sample_rate)
        container, codec = self.container.format.name, self.stream.codec.name
        self.exact = container in EXACT or (container in EXACT_WITH_PCM and codec.startswith("pcm_"))
        if container == "ogg":
            self.exact = not self._is_chained()
        self.counted = 0  # samples in the file; 0 until they have to be counted
        self.seconds = 0.0  # length of the sound, once `read` has found it

    def read(self, start: float | None, duration: float) -> tuple[np.ndarray, int]:
        """Decodes `duration` seconds from `start` (`None`: the middle), or what there is. Returns `(C, N)` and Hz."""
        length, exact = self.length(), self.exact
        self.seconds = length / self.rate
        first, count = _window(length, self.rate, start, duration, self.name)
        for seek_to in (first - round(PREROLL * self.rate), None) if exact else (None,):
            pieces = self._pieces(seek_to, first, count)
            if exact and not self.exact:  # the decoding showed that it is not
                return self.read(start, duration)
            if pieces:
                if not exact and length > count:
                    _announce(self.name, FROM_THE_START, f" ({length / self.rate:.0f} s)")
                return np.concatenate(pieces, axis=1)[:, :count], self.rate
        raise AudioError(f"{self.name}: damaged at {first / self.rate:.2f} s; expected sound that can be decoded")

    def blocks(self) -> Iterator[tuple[bool, np.ndarray]]:
        """Yields all samples as arrays `(C, n)` of about a second, each with whether it is the last."""
        self.exact = False  # samples are counted from the first, whatever the times say
        pieces: list[np.ndarray] = []
        for _, frame in self._frames(self._packets_from(None), 0):
            if sum(piece.shape[1] for piece in pieces) >= self.rate:
                yield False, np.concatenate(pieces, axis=1)
                pieces = []
            pieces.append(_samples_of(frame))
        yield True, np.concatenate(pieces, axis=1)

    def delay(self) -> float:
        """Seconds by which the sound of a film starts late; 0 for less than 50 ms, such as what encoders add."""
        picture = self.av.stream.Disposition.attached_pic
        if all(stream.disposition & picture for stream in self.container.streams.video):
            return 0.0
        late = self.begin - (self.container.start_time or 0) / 1e6
        return late if TIME_ERROR < late < (self.container.duration or 0) / 1e6 else 0.0

    def close(self) -> None:
        if self.container:
            self.container.close()

    def length(self) -> int:
        """Samples up to the end of the last frame that can be decoded."""
        if self.exact:
            claimed = (self.stream.duration or 0) * float(self.stream.time_base)
            claimed = claimed or (self.container.duration or 0) / 1e6
            for seek_to in (round((claimed - PREROLL) * self.rate), None):
                tail = deque(self._packets_from(seek_to), maxlen=TAIL_PACKETS)  # only the last are decoded
                end = max((position + frame.samples for position, frame in self._frames(tail, None)), default=0)
                if end and self.exact:
                    return end
                if not self.exact:
                    break
            self.exact = False
        if not self.counted:
            self.counted = sum(frame.samples for _, frame in self._frames(self._packets_from(None), 0))
        if not self.counted:
            raise AudioError(f"{self.name}: its end cannot be found; expected an undamaged file")
        return self.counted

    def _is_chained(self) -> bool:
        """Whether several Ogg files are joined, as in recorded web radio: the times start again in each."""
        position = self.file.tell()
        self.file.seek(0)
        beginnings, end = 0, b""
        while block := self.file.read(1 << 20):
            beginnings += len(OGG_BEGINNING.findall(end + block))
            end = block[-5:]
        self.file.seek(position)
        return beginnings > len(self.container.streams)

    def _pieces(self, seek_to: int | None, first: int, count: int) -> list[np.ndarray]:
        """Arrays `(C, n)` from sample `first` on, of `count` samples or more; none if decoding began too late."""
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
        Yields each frame with the sample that it begins at. `position` is the sample of the first packet, if known.
        Where the times disagree with the number of samples, sets `exact` to `False` and stops.
        """
        tick = max(self.samples_per_tick, 1)
        for packet in packets:
            for frame in self._decoded(packet):
                # A packet that is not as long as its frame has a guessed time, as in Vorbis when blocks get shorter.
                guessed = packet.duration and abs(packet.duration * self.samples_per_tick - frame.samples) > tick
                if self.exact and frame.pts is not None and (position is None or not guessed):
                    timed = round((frame.pts - self.origin) * self.samples_per_tick)
                    if position is not None and abs(timed - position) > TIME_ERROR * self.rate:
                        self.exact = False
                        return
                    position = timed
                # A frame of another kind comes from a damaged header and does not fit the others.
                if position is not None and _kind_of(frame) == self.kind:
                    yield position, frame
                    position += frame.samples

    def _packets_from(self, sample: int | None) -> Iterator[Any]:
        """Packets from one at or before `sample` (`None`: the first) to the end, or to where the file is broken."""
        if sample is None:  # some files do not support seeking
            self._open()
        # IndexError: PyAV does not know streams that appear only later in a file, as in MPEG-TS, and fails at its end.
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
            # FFmpeg would look for DTS in the first 2,500 packets of a WAV; that takes longer than everything else.
            "max_probe_packets": "8",
        }
        self.container = self.av.open(self.file, metadata_errors="ignore", options=options)
        if not self.container.streams.audio:
            found = self.container.format.name
            raise AudioError(f"{self.name}: no audio stream in this {found} file; expected audio, or video with sound")
        streams = self.container.streams.audio
        if self.index is not None and not 0 <= self.index < len(streams):
            found = f"{len(streams)} audio stream{'s'[: len(streams) > 1]}"
            raise AudioError(f"{self.name}: stream={self.index}, but it has {found}, counted from 0")
        default = self.av.stream.Disposition.default
        marked = (index for index, stream in enumerate(streams) if stream.disposition & default)
        self.stream = streams[next(marked, 0) if self.index is None else self.index]
        if self.stream.codec_context is None:
            raise AudioError(f"{self.name}: its codec is unknown to FFmpeg; expected one that it can decode")


def _mix_of(names: list[str]) -> np.ndarray | None:
    """Weights of the channels `names` (FFmpeg's) of a surround layout in the mono mix; `None`: all are averaged."""
    if len(names) <= 2 or not {"FL", "FR"} <= set(names):
        return None
    weights = {"FL": 0.5, "FR": 0.5, "LFE": 0.0, "LFE2": 0.0, "FC": math.sqrt(0.5)}
    return np.array([weights.get(name, 0.5 * math.sqrt(0.5)) for name in names], np.float32)


def _kind_of(frame: Any) -> tuple[int, str, str]:
    return frame.sample_rate, frame.format.name, frame.layout.name


def _samples_of(frame: Any) -> np.ndarray:
    """The samples `(C, n)` of a frame; PyAV gives packed formats as one interleaved row."""
    samples = frame.to_ndarray()
    return samples if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).T


def _window(length: int, rate: float, start: float | None, duration: float, name: str) -> tuple[int, int]:
    """First sample and number of samples of the wanted part, at the rate of the sound."""
    _check_rate(rate, name)
    if not (math.isfinite(duration) and duration >= MIN_SECONDS):
        raise AudioError(f"{name}: duration={duration} s; expected at least {MIN_SECONDS} s")
    count = round(duration * rate)
    if start is None:
        return max((length - count) // 2, 0), count
    if not (math.isfinite(start) and 0 <= start * rate < length):
        raise AudioError(f"{name}: start={start} s; expected 0 <= start < {length / rate:.2f} s, its length")
    return round(start * rate), count


def _check_rate(rate: float, name: str) -> None:
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"{name}: sampling rate {rate} Hz; expected {MIN_RATE} to {MAX_RATE} Hz")


def _channels_first(waveform: Array, name: str) -> np.ndarray:
    """An array of real numbers as `(C, N)`."""
    if isinstance(waveform, torch.Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.dtype == torch.bfloat16 else waveform).numpy()
    if waveform.dtype.kind not in "iuf":
        raise AudioError(f"{name}: values of type {waveform.dtype}; expected floating-point or integer samples")
    channels = waveform[None] if waveform.ndim == 1 else waveform
    if channels.ndim != 2 or not 0 < channels.shape[0] <= min(channels.shape[1], MAX_CHANNELS):
        raise AudioError(
            f"{name}: shape {waveform.shape}; expected (samples,) or (channels, samples), 1 to {MAX_CHANNELS} channels "
            "(transpose an array of shape (samples, channels); pass a batch as a list)"
        )
    return channels


def _finish(
    channels: np.ndarray, rate: float, duration: float, target_rate: int, name: str, mix: np.ndarray | None = None
) -> np.ndarray:
    """Turns cropped samples `(C, N)` of any type into exactly `duration` seconds of mono at `target_rate`."""
    seconds = channels.shape[1] / rate
    if seconds < MIN_SECONDS:
        raise AudioError(f"{name}: {channels.shape[1]} samples at {rate} Hz; expected at least {MIN_SECONDS} s")
    mono = _to_mono(channels, name, mix)
    if channels.shape[1] < round(duration * rate):
        _announce(name, f"shorter than {duration:g} s, repeated and zero-padded", f" ({seconds:.2f} s)")
    return repeat_pad(_resample(mono, rate, target_rate), round(duration * target_rate))


def _announce(name: str, kind: str, detail: str = "") -> None:
    warnings.warn(AudioWarning(name, kind, detail), stacklevel=2)


def _to_mono(channels: np.ndarray, name: str, mix: np.ndarray | None = None) -> np.ndarray:
    """Averages the channels, or sums them weighted by `mix`, to float32 `(N,)`."""
    samples = _to_float32(channels)
    mono = _mix(samples, mix)
    peak = np.abs(mono).max()
    _check_peak(peak, name)
    if peak < 1e-3:
        loudest = np.abs(samples).max()
        if loudest == 0:
            _announce(name, "digital silence")
        elif peak < 1e-3 * loudest:
            _announce(name, OPPOSITE_PHASE)
    return mono


def _mix(samples: np.ndarray, mix: np.ndarray | None) -> np.ndarray:
    """Averages channels `(C, N)`, or sums them weighted by `mix`, to `(N,)`."""
    with np.errstate(invalid="ignore"):  # inf - inf
        # Channel by channel: numpy's mean over the short axis of interleaved samples is 20 times slower.
        if mix is None:
            return sum(samples[1:], start=samples[0]) / np.float32(len(samples))
        return sum(weight * channel for weight, channel in zip(mix, samples) if weight)


def _check_peak(peak: np.floating, name: str) -> None:
    if not np.isfinite(peak):
        raise AudioError(f"{name}: NaN or infinite samples; expected finite ones in [-1, 1]")
    if peak > MAX_PEAK:
        raise AudioError(f"{name}: samples up to {peak:g}; expected floats in [-1, 1] (divide by the full scale)")


def _to_float32(samples: np.ndarray) -> np.ndarray:
    """Converts samples: floats are not scaled; integers are divided by half the range of their type, and centred."""
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite and is rejected
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
        raise ImportError("Resampling needs soxr: `pip install soxr`") from error
    return soxr.resample(mono, rate, target_rate, quality="HQ")


def _resampler(rate: int, target_rate: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    """Resamples as [`_resample`] does, piece by piece: a function of the next samples and whether they are the last."""
    if rate == target_rate:
        return lambda mono, last: mono
    try:
        import soxr
    except ImportError as error:
        raise ImportError("Resampling needs soxr: `pip install soxr`") from error
    return soxr.ResampleStream(rate, target_rate, 1, dtype="float32", quality="HQ").resample_chunk


def repeat_pad(mono: np.ndarray, length: int) -> np.ndarray:
    """CLAP's "repeatpad": as many whole copies as fit, then zeros. Also corrects a resampled length that is one off."""
    mono = np.tile(mono[:length], length // min(len(mono), length))
    return np.pad(mono, (0, length - len(mono)))
