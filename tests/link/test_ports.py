"""Ports of loopback that are free, and will be when their listener starts again."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from link.errors import LinkError
from link.ports import HOST, PORTS, free_ports
from tests.ports import AMONG


def test_ports_are_different_and_may_be_listened_on() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    for port in found:
        socket.create_server((HOST, port)).close()


def test_a_port_that_is_taken_is_left_out_and_none_left_is_an_error() -> None:
    first, second = free_ports(2, AMONG)
    among = range(min(first, second), max(first, second) + 1, abs(first - second))
    with socket.create_server((HOST, first)):
        assert free_ports(1, among) == [second]
        with pytest.raises(LinkError, match=r"Expected 2 free ports on .*; found 1"):
            free_ports(2, among)


def test_no_outgoing_connection_is_given_such_a_port() -> None:
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not path.exists():
        pytest.skip("the system does not say which ports it gives")
    first = int(path.read_text().split()[0])
    assert PORTS.stop <= first and AMONG.stop <= first
