/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A backup's connection, inside.  One job a file:
 *   backup_net.c      the threads, who is let in, fencing
 *   backup_session.c  one primary from its hello to its end
 *   backup_out.c      what the backup says
 *   pending.c           who wants to connect, until it has proven itself
 */
#ifndef REMUS_BACKUP_NET_H
#define REMUS_BACKUP_NET_H

#include <pthread.h>
#include <stdatomic.h>

#include "backup/backup.h"
#include "base/spin.h"
#include "link/pending.h"
#include "link/address.h"
#include "link/input.h"

#define REMUS_BACKUP_OUT (64u * 1024) /* answers not taken by the socket */

/* Lock order: backup.lock before send_lock; net.lock is taken alone. */
struct remus_backup_net {
    remus_backup *b;                /* constant */
    struct remus_address address;   /* constant */
    int listener;                   /* constant */
    int wake;                       /* constant: eventfd, set to stop */
    uint32_t loss_ms;               /* constant */
    struct remus_tls_keys *keys;    /* constant; NULL: no TLS */
    struct remus_pending *pending;  /* constant */
    struct remus_refusals refusals; /* its own lock; leaf */
    pthread_t pinger, session, applier;
    struct remus_input input; /* session thread */

    pthread_mutex_t lock;
    pthread_cond_t changed;         /* conn, stopping, fenced changed */
    pthread_cond_t apply;           /* the applier has something to do */
    int conn;                       /* lock: link.fd once taken, or -1 */
    struct remus_conn link;         /* session thread's while conn >= 0; its
                                      sending side is send_lock's */
    int connected;                  /* lock: its hello was accepted */
    uint64_t link_changed_ns;       /* lock */
    int had_primary;                /* lock: one was ever connected */
    int said_bye;                   /* lock: ... and ended on purpose */
    int stopping;                   /* lock */
    int fenced;                     /* lock: nobody is let in */
    int apply_now;                  /* lock: space is needed */
    int answer;                     /* lock: to our asking: 1 yes, -1 no */
    uint64_t answer_epoch;          /* lock: yes, with this checkpoint */
    char why_not[REMUS_REASON_MAX]; /* lock */
    _Atomic uint64_t last_rx_ns;    /* when something came in */

    pthread_mutex_t send_lock;
    struct remus_conn *send_conn; /* send_lock: &link, or NULL */
    uint64_t greeted;             /* send_lock: session whose hello has its
                                      answer; 0: none */
    size_t out_len;               /* send_lock */
    unsigned char out[REMUS_BACKUP_OUT]; /* send_lock */
    int news; /* session thread: a commit was taken, and nobody told */
    uint64_t spin_most;          /* constant: remus_spin_most() */
    uint64_t acked_ns;           /* session thread: nothing came since; or 0 */
    struct remus_spin follow;    /* session thread: what the next thing took */
    struct remus_news last_ping; /* pinger thread */
    uint64_t told;               /* applier thread: epoch last announced */
};

/* backup_session.c */
/* Note a connection that was turned away. */
void remus_backup_refused(struct remus_backup_net *net,
                          const struct remus_conn *conn, int cause,
                          const char *text);
void *remus_backup_session_main(void *arg);

/* backup_out.c; each takes send_lock itself.  None blocks. */
/* Where to send from here on; NULL: nowhere. */
void remus_backup_send_to(struct remus_backup_net *net,
                          struct remus_conn *conn);
/* -ENOTCONN; -ENOBUFS: it does not read; -errno of the connection. */
int remus_backup_send(struct remus_backup_net *net, struct remus_record *r,
                      const void *payload);
void remus_backup_send_error(struct remus_backup_net *net, const char *text);
/* How far we are: in a PING as far as is known without waiting (pinger
 * thread), in an ACK or APPLIED. */
void remus_backup_send_ping(struct remus_backup_net *net);
int remus_backup_send_progress(struct remus_backup_net *net, uint8_t type);
/* What epochs came to, to the primary whose session it is about. */
void remus_backup_send_measured(struct remus_backup_net *net);

#endif
