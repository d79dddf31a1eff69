"""The operations on Huawei Ascend NPUs, and what a machine needs for them."""
