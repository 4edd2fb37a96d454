#!/usr/bin/env python3
"""Writes container images as archives in the layout of `docker save`, from files, without any engine.

    archive.py OUT NAME CONFIG LAYER...

CONFIG is JSON: the image's `config` (Cmd, Entrypoint, Env, User...). Each LAYER is a file of lines
    d MODE UID PATH             directory
    f MODE PATH SOURCE          file, owned by root
    l PATH TARGET               symbolic link
and becomes a tar beside it, kept while neither the lines nor the files change: rebuilding an image
whose last layer alone is new costs that layer.
"""
import hashlib, io, json, os, sys, tarfile


def entry(path, kind, mode, uid=0):
    info = tarfile.TarInfo(path.lstrip("/"))
    info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, uid, uid, 0
    return info


def write_layer(lines, out):
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        for line in lines:
            kind, *words = line.split()
            if kind == "d":
                tar.addfile(entry(words[2], tarfile.DIRTYPE, int(words[0], 8), int(words[1])))
            elif kind == "l":
                link = entry(words[0], tarfile.SYMTYPE, 0o777)
                link.linkname = words[1]
                tar.addfile(link)
            else:
                file = entry(words[1], tarfile.REGTYPE, int(words[0], 8))
                with open(words[2], "rb") as source:
                    file.size = os.fstat(source.fileno()).st_size
                    tar.addfile(file, source)


def fingerprint(lines):
    seen = hashlib.sha256("\n".join(lines).encode())
    for line in lines:
        if line.startswith("f"):
            stat = os.stat(line.split()[3])
            seen.update(f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}\n".encode())
    return seen.hexdigest()


def layer(listing):
    """The path of the layer's tar, and its digest; the tar lies beside the listing, until it is another."""
    with open(listing) as source:
        lines = [line for line in source.read().splitlines() if line]
    tar, record, wanted = listing + ".tar", listing + ".sha256", fingerprint(lines)
    if os.path.exists(record):
        with open(record) as source:
            had, digest = source.read().split()
        if had == wanted:
            return tar, digest
        os.remove(record)
    write_layer(lines, tar)
    digest = digest_of(tar)
    with open(record, "w") as out:
        out.write(f"{wanted} {digest}")
    return tar, digest


def digest_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def main(out, name, config, *listings):
    layers = [layer(listing) for listing in listings]
    image = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": json.loads(config),
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + digest for _, digest in layers]},
    }
    text = json.dumps(image, indent=1).encode()
    config_name = hashlib.sha256(text).hexdigest() + ".json"
    names = [digest + ".tar" for _, digest in layers]
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": names}]).encode()
    with tarfile.open(out + ".new", "w", format=tarfile.GNU_FORMAT) as tar:
        for (path, _), inner in zip(layers, names):
            file = entry(inner, tarfile.REGTYPE, 0o644)
            with open(path, "rb") as source:
                file.size = os.fstat(source.fileno()).st_size
                tar.addfile(file, source)
        for inner, data in ((config_name, text), ("manifest.json", manifest)):
            file = entry(inner, tarfile.REGTYPE, 0o644)
            file.size = len(data)
            tar.addfile(file, io.BytesIO(data))
    os.replace(out + ".new", out)


main(*sys.argv[1:])
