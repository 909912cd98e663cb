"""Subtitles in a copy of a film, whose streams are copied bit by bit."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av

from captions.rendering import Cue
from clips.outputs import replaced_whole

CODECS = {".mp4": "mov_text", ".m4v": "mov_text", ".mkv": "subrip"}
MILLISECOND = Fraction(1, 1000)
STYLES = b"[Script Info]\r\nScriptType: v4.00+\r\n"  # none; FFmpeg opens an encoder of subtitles only with some


def check_embeddable(film: Path):
    """Raises `ValueError` for a file that [`embed`] does not take."""
    if film.suffix.lower() not in CODECS:
        raise ValueError(f"--embed: {film} is not a film that takes subtitles: expected {', '.join(CODECS)}")


def embed(film: Path, target: Path, cues: Sequence[Cue], title: str = "Music"):
    """
    Copies a film and adds a subtitle track. The packets of all other streams are copied as they are. The file appears
    whole or not at all.

    Args:
        film (`Path`): An mp4, m4v or mkv file.
        target (`Path`): The copy.
        cues (`Sequence[Cue]`): In the order of their times.
        title (`str`, defaults to `"Music"`): The name of the track.

    Raises:
        `ValueError`: If the film is of another kind, or has a stream that cannot be copied.
    """
    check_embeddable(film)
    codec = CODECS[film.suffix.lower()]
    form = "matroska" if codec == "subrip" else "mp4"
    try:
        with (
            replaced_whole(target) as unfinished,
            av.open(str(film)) as source,
            av.open(str(unfinished), "w", format=form) as copy,
        ):
            chapters = source.chapters()
            copy.metadata.update(source.metadata)
            copy.set_chapters(chapters)
            streams = {}
            for stream in source.streams:
                if form == "mp4" and stream.type == "data" and chapters and stream.frames == len(chapters):
                    continue  # mp4 keeps the chapters in a stream, too, which is written again
                streams[stream.index] = copy.add_stream_from_template(stream)
                streams[stream.index].metadata.update(stream.metadata)
                streams[stream.index].disposition = stream.disposition
            track = copy.add_stream(codec)
            track.codec_context.subtitle_header = STYLES
            track.time_base = MILLISECOND
            track.metadata.update({"language": "eng", "title": title, "handler_name": title})
            track.disposition = av.stream.Disposition.hearing_impaired
            try:
                copy.start_encoding()
            except av.error.FFmpegError as error:
                kinds = ", ".join(f"{stream.index} {stream.type}" for stream in source.streams)
                raise ValueError(
                    f"--embed: a stream of {film} ({kinds}) cannot be copied: keep only picture and sound, as with "
                    "`ffmpeg -i FILM -map 0:v -map 0:a -c copy COPY`"
                ) from error
            waiting = [_packet(cue, codec, track) for cue in reversed(cues)]
            for packet in source.demux(*[source.streams[index] for index in streams]):
                if not packet.size:  # the end of a stream
                    continue
                time = packet.pts if packet.dts is None else packet.dts
                while waiting and time is not None and waiting[-1].pts * MILLISECOND <= time * packet.time_base:
                    copy.mux_one(waiting.pop())
                packet.stream = streams[packet.stream.index]
                copy.mux_one(packet)
            while waiting:
                copy.mux_one(waiting.pop())
    except av.error.FFmpegError as error:
        raise ValueError(f"--embed: {film} cannot be copied to {target}: {error}") from error


def _packet(cue: Cue, codec: str, track) -> av.Packet:
    text = "\n".join(cue.lines).encode()
    packet = av.Packet(len(text).to_bytes(2, "big") + text if codec == "mov_text" else text)
    packet.stream, packet.time_base = track, MILLISECOND
    packet.pts = packet.dts = cue.start
    packet.duration = cue.end - cue.start
    return packet
