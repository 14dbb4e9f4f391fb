/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Descriptors of the simulated world: eventfds, and TCP between its hosts.
 *
 * Every host is 127.0.0.1; a port names a listener.  Bytes of one connection
 * arrive in order, each piece after its delay; a cut link holds everything
 * back (both ways or one way) until it is mended; a process that is killed
 * closes its connections, a host that loses its power says nothing, and
 * answers with a reset once it is back.
 */
#ifndef REMUS_WORLD_NET_H
#define REMUS_WORLD_NET_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* `fast`: no matter what the seed says. */
void world_net_begin(int fast);
/* Is this one of ours? */
int world_fd(int fd);

int world_eventfd(void);
/* The descriptor of device.h, which belongs to the guest's machine. */
int world_device(int host);
int world_socket(void);
int world_bind(int fd, unsigned int port);
int world_listen(int fd);
int world_connect(int fd, unsigned int port);
int world_accept(int fd);
int world_socket_error(int fd);
ssize_t world_send(int fd, const void *buf, size_t len);
ssize_t world_recv(int fd, void *buf, size_t cap, int peek);
ssize_t world_read(int fd, void *buf, size_t cap);
ssize_t world_write(int fd, const void *buf, size_t len);
int world_shutdown(int fd);
int world_close(int fd);
int world_poll(struct pollfd *fds, nfds_t n, int timeout_ms);

/* What is sent from `host` is held back, or not any more. */
void world_net_cut(int host, int cut);
/* Every connection is reset. */
void world_net_reset(void);
/* The host's descriptors are gone; `silent`: nobody is told. */
void world_net_host_gone(int host, int silent);

#endif
