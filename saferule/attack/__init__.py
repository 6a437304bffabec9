"""The attack of the paper (Algorithm 1): the adversary (`adversary`) and the poisoning (`poison`)."""
