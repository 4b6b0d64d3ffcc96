"""The paper's multimodal grader (arXiv 2502.12146, "MLLM grader"), asked at any OpenAI-compatible endpoint.

A multimodal model gives an image five marks from 0 to 100, and the reward `R(x_t, c)` of Eq. 7 is their mean. It is the
reward that has no gradient and no weights of ours: `scorer` is the callable, `rubric` what the model is told, `answer`
how its marks are read, `examiner` how it is asked, `failures` why there may be no mark, `usage` what it cost.
"""
