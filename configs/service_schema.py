"""Configuration of annotation and of the reward model: what the LLM is asked, by which service, and what becomes of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AnnotatorConfig:
    """What is asked, in which order, and how much at a time."""

    address: str = ""
    """host:port of a running annotation service; empty starts one with the run."""
    rubric: str = "nethack_progress"
    """Name of a built-in rubric or path of a rubric YAML."""
    batch_size: int = 32
    """Captions per request."""
    max_in_flight: int = 2
    """Requests outstanding at once."""
    max_captions: int = 1_000_000
    """Captions the book holds; the least recently seen are evicted (their texts stay in captions.sqlite)."""
    recency_half_life_env_steps: int = 200_000
    """A caption's priority is its count halved for each such span since it was last seen."""
    labels_per_turn: int = 64
    """Judgements asked for in one turn of `inline` mode."""
    request_timeout_s: float = 120.0
    """Deadline of one request."""
    max_backoff_s: float = 30.0
    """Longest wait between attempts while the service is down."""


@dataclass(frozen=True)
class ServiceConfig:
    """The annotation service, started by a run or by `delphi serve`."""

    engine: str = "transformers"
    """`transformers`, `vllm` (a vLLM server as a child), `openai` (an endpoint that speaks OpenAI's protocol), `scripted` (deterministic,
    for tests and debugging only) or `none` (embeds sentences and judges nothing)."""
    model: str = "smollm2"
    """`smollm2` (the packaged SmolLM2-135M-Instruct), a folder, or a Hugging Face id; with `openai`, the endpoint's name of it."""
    encoder: str = "minilm"
    """Sentence encoder behind `Embed`, loaded when first asked: `minilm` (the packaged all-MiniLM-L6-v2), a folder, or a Hugging Face id."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:N`, or `auto`."""
    dtype: str = "auto"
    """`bfloat16`, `float32`, or `auto` (bfloat16)."""
    batch_size: int = 32
    """Items per forward pass."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 0
    """Port to listen on; 0 takes a free one."""
    nice: int = 10
    """Scheduling niceness of a service that a run starts, 0 to 19, so that it yields to training."""
    torch_threads: int = 1
    """Threads torch may use in the service; 0 leaves torch's own choice."""
    store: str = ""
    """SQLite file of judgements; empty takes judgements.sqlite in the user's cache directory, `memory` keeps none."""
    max_items_per_request: int = 1024
    """Requests with more items are refused."""
    max_item_bytes: int = 4096
    """Requests with a longer item are refused."""
    script: str = ""
    """Rules of the `scripted` engine, `regex=probability` separated by `;`; the first match wins, default probability 0.1."""
    script_delay_s: float = 0.0
    """Seconds the `scripted` engine takes per item."""
    engine_timeout_s: float = 60.0
    """Of `vllm` and `openai`: deadline of one answer, after which vLLM is taken to hang and is replaced, and an endpoint is given up."""
    vllm_python: str = ""
    """Python of the environment that has vLLM; empty takes this one, or .venv-vllm's beside this one's environment."""
    tensor_parallel: int = 1
    """GPUs that vLLM spreads the model over."""
    gpu_memory_utilization: float = 0.8
    """Share of a GPU's memory that vLLM takes; lower it where the learner trains on the same GPU."""
    max_model_len: int = 0
    """Tokens of the longest prompt that vLLM makes room for; 0 takes 4096, or less where the model reads less."""
    endpoint: str = ""
    """Base URL for the `openai` engine, for example http://127.0.0.1:8000/v1."""
    endpoint_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the endpoint's key; the key itself is never written down."""
    endpoint_concurrency: int = 16
    """Requests to the endpoint at once."""


@dataclass(frozen=True)
class RewardModelConfig:
    """How judgements become one number per caption."""

    name: str = "retrieval"
    """`retrieval`, `counts` (R = 1 for every non-empty caption) or `none` (extrinsic reward only)."""
    output: str = "binary"
    """`binary`: R = 1[p > threshold]; `soft`: R = max(0, p - threshold) / (1 - threshold)."""
    threshold: float = -1.0
    """Probability above which a caption is rewarded; -1 takes the rubric's."""
    publish_interval_s: float = 1.0
    """Seconds between reward tables in `local` and `connect`; `inline` publishes once per turn."""
