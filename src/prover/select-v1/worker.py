"""One EZKL operation per process: a JSON request on stdin, one JSON line on stdout, exit code 0.

    {"op": "version"}                                        -> {"ezkl": "23.0.5"}
    {"op": "build", "dir", "jobs", "spots", "candidates", "logrows"}  -> {"sha256": {file: hex}}
    {"op": "hashes", "dir"}                                  -> {"sha256": {file: hex}}
    {"op": "check", "dir", "scratch", "inputs": [input]}     -> {"refused": [reason or null]}
    {"op": "prove", "dir", "scratch", "input"}               -> {"proof": hex, "instances": [hex]}
    {"op": "verify", "dir", "scratch", "proof", "instances"} -> {"valid": bool}
    any                                                      -> {"kind": kind, "error": text}

`dir` holds the circuit and its keys, `scratch` is an empty directory of the caller's; `memory_mb`, when given, limits
the address space. An input is a list of tensors of field elements; numbers are big-endian hex of 32 bytes.
Kinds of error: "refused" (this input has no proof: do not retry), "environment" (Python lacks a package), "failed".

Why a process each: EZKL holds the interpreter's lock while it proves, aborts when memory runs out, and waits for ever
when a lookup is out of its table, which is why `witness` looks before anything is proved.
"""

import asyncio
import hashlib
import inspect
import json
import os
import resource
import sys

SRS = "kzg{logrows}.srs"
DERIVED = ("circuit.onnx", "settings.json", "circuit.ezkl", "vk.key", "pk.key", "Verifier.sol")


class Refused(Exception):
    """The input is not one the circuit accepts."""


def version(request):
    import numpy, onnx  # noqa: E401,F401  what `build` needs

    return {"ezkl": ezkl.__version__}


def build(request):
    sys.path.insert(0, request["dir"])
    import circuit

    path = paths(request["dir"], request["logrows"])
    circuit.build(path("circuit.onnx"), request["jobs"], request["spots"], request["candidates"])
    arguments = ezkl.PyRunArgs()
    for name, value in circuit.settings(request["logrows"]).items():
        setattr(arguments, name, value)
    ezkl.gen_settings(path("circuit.onnx"), path("settings.json"), py_run_args=arguments)
    settings = canonical(load(path("settings.json")))
    with open(path("settings.json"), "w") as file:
        json.dump(settings, file, separators=(",", ":"))
    ezkl.compile_circuit(path("circuit.onnx"), path("circuit.ezkl"), path("settings.json"))
    ezkl.setup(path("circuit.ezkl"), path("vk.key"), path("pk.key"), path(SRS))
    asyncio.run(write_verifier(path))
    for name in DERIVED:
        with open(path(name), "rb") as file:
            os.fsync(file.fileno())
    return hashes(request)


def canonical(settings):
    """Orders what EZKL leaves in the order of a hash map: the order of range checks decides that of the columns."""
    settings["timestamp"] = 0
    equations = settings["einsum_params"]["equations"]
    equations[:] = [[name, dict(sorted(axes.items()))] for name, axes in equations]
    for unordered in (settings["required_range_checks"], settings["required_lookups"], equations):
        unordered.sort(key=json.dumps)
    return settings


async def write_verifier(path):
    """EZKL writes the contract, then fetches a compiler only to make an ABI that is always the same."""
    source, abi = path("Verifier.sol"), path("Verifier.abi")
    try:
        written = ezkl.create_evm_verifier(path("vk.key"), path("settings.json"), source, abi, path(SRS), False)
        if inspect.isawaitable(written):
            await written
    except RuntimeError:
        if not os.path.exists(source):
            raise
    if os.path.exists(abi):
        os.remove(abi)


def hashes(request):
    def digest(name):
        with open(os.path.join(request["dir"], name), "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    names = [*DERIVED, *(name for name in os.listdir(request["dir"]) if name.endswith(".srs"))]
    return {"sha256": {name: digest(name) for name in sorted(names)}}


def check(request):
    def reason(tensors):
        try:
            witness(request, tensors)
        except Refused as refused:
            return str(refused)

    return {"refused": [reason(tensors) for tensors in request["inputs"]]}


def prove(request):
    path, proof = paths(request["dir"]), os.path.join(request["scratch"], "proof.json")
    ezkl.prove(witness(request, request["input"]), path("circuit.ezkl"), path("pk.key"), proof, path(SRS))
    # EZKL does not check what it proves.
    if not ezkl.verify(proof, path("settings.json"), path("vk.key"), path(SRS)):
        raise RuntimeError("EZKL rejects the proof it has just made")
    made = load(proof)
    return {"proof": bytes(made["proof"]).hex(), "instances": [swapped(x) for x in made["instances"][0]]}


def verify(request):
    path, proof = paths(request["dir"]), os.path.join(request["scratch"], "proof.json")
    data = bytes.fromhex(request["proof"])
    instances = [[swapped(x) for x in request["instances"]]]
    with open(proof, "w") as file:
        json.dump({"proof": list(data), "hex_proof": "0x" + data.hex(), "instances": instances}, file)
    hashes(request)  # a missing key must not look like a bad proof
    try:
        return {"valid": ezkl.verify(proof, path("settings.json"), path("vk.key"), path(SRS))}
    except RuntimeError:
        return {"valid": False}


def witness(request, tensors):
    """Writes the witness of `tensors` and returns its path, or raises Refused when there is nothing to prove."""
    path = paths(request["dir"])
    source, target = (os.path.join(request["scratch"], name) for name in ("input.json", "witness.json"))
    with open(source, "w") as file:
        json.dump({"input_data": [[swapped(x) for x in tensor] for tensor in tensors]}, file)
    try:
        ezkl.gen_witness(source, path("circuit.ezkl"), target)
    except RuntimeError as error:
        if "[io]" in str(error):
            raise
        raise Refused(f"EZKL makes no witness of it: {error}") from error
    made = load(target)
    low, high = load(path("settings.json"))["run_args"]["lookup_range"]
    if made["min_lookup_inputs"] < low or made["max_lookup_inputs"] > high:
        found = f"{made['min_lookup_inputs']}..={made['max_lookup_inputs']}"
        raise Refused(f"scores minus the first are {found}, not within {low}..={high}")
    for name, errors in zip(("rank", "order"), made["outputs"][-2:]):
        wrong = [spot for spot, error in enumerate(errors) if int(error, 16)]
        if wrong:
            raise Refused(f"the {name} of record {wrong[0]} is not the one the draw and the scores give")
    return target


def paths(directory, logrows=None):
    """Returns the function from a file's name to its path; the SRS is the one the settings ask for."""

    def path(name):
        if name == SRS:
            rows = logrows or load(os.path.join(directory, "settings.json"))["run_args"]["logrows"]
            name = SRS.format(logrows=rows)
        return os.path.join(directory, name)

    return path


def load(path):
    with open(path) as file:
        return json.load(file)


def swapped(element):
    """Returns the other byte order: EZKL's files are little-endian, everything else here is big-endian."""
    return bytes.fromhex(element)[::-1].hex()


def main():
    request = json.load(sys.stdin)
    if request.get("memory_mb"):
        resource.setrlimit(resource.RLIMIT_AS, (request["memory_mb"] << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # EZKL prints to stdout: keep the real one for the answer alone.
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        global ezkl
        import ezkl

        operations = {op.__name__: op for op in (version, build, hashes, check, prove, verify)}
        answer = operations[request["op"]](request)
    except Refused as error:
        answer = {"kind": "refused", "error": str(error)}
    except ImportError as error:
        answer = {"kind": "environment", "error": str(error)}
    except BaseException as error:
        answer = {"kind": "failed", "error": f"{type(error).__name__}: {error}"[:1000]}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    answer["cpu_ms"] = int((usage.ru_utime + usage.ru_stime) * 1000)
    answer["memory_peak_mb"] = usage.ru_maxrss >> 10
    os.write(stdout, (json.dumps(answer) + "\n").encode())
    # Not a plain return: EZKL's threads can abort the interpreter while it shuts down.
    os._exit(0)


main()
