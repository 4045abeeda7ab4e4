"""llama.cpp's side of run.py, by its raw decode call. Started by run.py, answers commands on standard input.

    load FILE                   loads a GGUF file for 2 threads
    run STREAMS PROMPT STEPS    a pass over PROMPT tokens of each stream, then STEPS passes over one token each
"""

import ctypes
import json
import sys
import time

import llama_cpp as l
import numpy as np


class Model:
    def __init__(self, path):
        parameters = l.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = l.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocabulary = l.llama_vocab_n_tokens(l.llama_model_get_vocab(self.model))

    def run(self, ids, out, streams, prompt, steps):
        parameters = l.llama_context_default_params()
        length = prompt + steps
        parameters.n_ctx = streams * length
        parameters.n_batch = streams * prompt
        parameters.n_ubatch = 512
        parameters.n_seq_max = streams
        parameters.n_threads = parameters.n_threads_batch = 2
        context = l.llama_init_from_model(self.model, parameters)
        rows = ids[: streams * length].reshape(streams, length)
        batch = l.llama_batch_init(streams * prompt, 0, 1)

        def decode(tokens, first):
            """One call: `tokens [streams, n]`, the first of them at position `first`; scores of the last of each stream."""
            n = tokens.shape[1]
            batch.n_tokens = streams * n
            for i, (stream, at) in enumerate((s, p) for s in range(streams) for p in range(n)):
                batch.token[i], batch.pos[i] = int(tokens[stream, at]), first + at
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, stream
                batch.logits[i] = at == n - 1
            start = time.perf_counter()
            if l.llama_decode(context, batch) != 0:
                raise SystemExit("llama_decode failed")
            # The call may return before the work is done; asking for scores waits.
            l.llama_get_logits_ith(context, -1)
            return time.perf_counter() - start

        prefill = decode(rows[:, :prompt], 0)
        decoding = sum(decode(rows[:, at : at + 1], at) for at in range(prompt, length))
        scores = np.zeros((streams, self.vocabulary), dtype="<f4")
        for stream in range(streams):
            scores[stream] = np.ctypeslib.as_array(l.llama_get_logits_ith(context, stream), (self.vocabulary,))
        scores.tofile(out)
        l.llama_batch_free(batch)
        l.llama_free(context)
        return {"prefill": prefill, "decode": decoding}


def main(ids, out):
    quiet = l.llama_log_callback(lambda *_: None)
    l.llama_log_set(quiet, ctypes.c_void_p(0))
    l.llama_backend_init()
    ids = np.fromfile(ids, dtype="<u4").astype(np.int32)
    model = None
    for line in sys.stdin:
        command, *words = line.split()
        start = time.perf_counter()
        if command == "load":
            model = Model(words[0])
            answer = {"seconds": time.perf_counter() - start}
        else:
            answer = model.run(ids, out, *map(int, words))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
