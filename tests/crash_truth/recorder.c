/* Records what a process asks of the disk, and fails what it is told to fail. Preloaded into the server.
 *
 * Every call that changes a file or a directory below one root is appended to one log, shared by all
 * processes: a mapped file of which room is taken by one atomic addition, so that its order is a global
 * order. A change is logged when the call has returned, a sync both when it begins and when it has
 * returned: what counts as synced was logged before the sync began. Errs on the side of "not durable".
 *
 * Environment: CRASH_TRUTH_LOG names the mapped file (made by library.py, which knows the same layout).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    CREATE = 1, WRITE, SYNC_BEGIN, SYNC_END, TRUNCATE, ALLOCATE, RENAME, LINK, UNLINK, MKDIR, RMDIR,
    MAPPED, NOTE, UNSUPPORTED, FAULT, DROP
};
enum { DURABLE = 1, DIRECT = 2, IS_DIRECTORY = 4, OF_BEFORE = 8 };                        /* flags of an entry */
enum { ON_WRITE = 1, ON_SYNC = 2, ON_READ = 4, ON_NAME = 8 };              /* operations of a fault */
enum { FAIL = 0, SHORT = 1, DIE = 2 };                                     /* what it does */

#define HEAD_BYTES 65536
#define ALIGNMENT 64
#define ROOM(n) (((n) + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1))
#define FAULTS 8
#define ERRORS 32
#define PATH_BYTES 4200

typedef struct {
    _Atomic int32_t armed;
    int32_t operations;
    _Atomic int64_t skip;   /* matching operations that still succeed */
    _Atomic int64_t times;  /* and how many then fail */
    int32_t error;
    int32_t action;
    int64_t short_bytes;
    _Atomic int64_t fired;
    char path[208];         /* a part of the path */
} fault;

typedef struct {
    uint64_t magic;
    uint64_t capacity;
    _Atomic uint64_t used;
    _Atomic uint64_t tokens;
    _Atomic uint64_t reads_fail;  /* not 0: a fault may be waiting for a read */
    pthread_mutex_t names;  /* held over a change of names and its logging */
    char pad[256 - 40 - sizeof(pthread_mutex_t)];
    char root[PATH_MAX];
    fault faults[FAULTS];
    struct {
        _Atomic uint64_t inode;
        _Atomic uint64_t number;
    } errors[ERRORS];       /* files of which a sync failed: every process that has one open hears of it */
} head;

typedef struct {
    _Atomic uint32_t room;  /* in units of ALIGNMENT, times two; odd when the entry is complete */
    uint32_t kind;
    uint32_t pid;
    uint32_t tid;
    uint64_t inode;
    int64_t offset;
    uint64_t length;
    uint64_t token;
    int32_t result;
    uint32_t flags;
    uint32_t path_bytes;
    uint32_t path2_bytes;
} entry;                    /* 64 bytes; then path, path2, data */

static head *shared;
static size_t root_bytes;
static uint64_t heard[ERRORS];

#define REAL(name) static __typeof__(name) *real_##name
REAL(open); REAL(openat); REAL(write); REAL(pwrite); REAL(writev); REAL(pwritev); REAL(pwritev2);
REAL(read); REAL(pread); REAL(readv); REAL(preadv); REAL(preadv2);
REAL(fsync); REAL(fdatasync); REAL(ftruncate); REAL(truncate); REAL(fallocate); REAL(posix_fallocate);
REAL(rename); REAL(renameat); REAL(renameat2); REAL(link); REAL(linkat); REAL(unlink); REAL(unlinkat);
REAL(mkdir); REAL(mkdirat); REAL(rmdir); REAL(symlink); REAL(symlinkat); REAL(mmap);
REAL(copy_file_range); REAL(sync_file_range); REAL(posix_fadvise);

/* ---------------------------------------------------------------- the log */

void crash_truth_open(const char *path)
{
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    struct stat found;
    if (fd < 0 || syscall(SYS_fstat, fd, &found) < 0)
        return;
    void *map = (void *)syscall(SYS_mmap, NULL, found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (map == MAP_FAILED)
        return;
    shared = map;
    root_bytes = strlen(shared->root);
    for (int i = 0; i < ERRORS; i++)
        heard[i] = atomic_load(&shared->errors[i].number);
}

/* Once, by whoever makes the log. */
void crash_truth_prepare(void)
{
    pthread_mutexattr_t how;
    pthread_mutexattr_init(&how);
    pthread_mutexattr_setpshared(&how, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&how, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&shared->names, &how);
}

static void lock_names(void)
{
    if (pthread_mutex_lock(&shared->names) == EOWNERDEAD)
        pthread_mutex_consistent(&shared->names);
}

static void unlock_names(void) { pthread_mutex_unlock(&shared->names); }

static void append(uint32_t kind, uint64_t inode, int64_t offset, uint64_t token, int32_t result,
                   uint32_t flags, const char *path, const char *path2, const struct iovec *data,
                   int count, uint64_t length)
{
    int before = errno;
    uint64_t path_bytes = path ? strlen(path) : 0, path2_bytes = path2 ? strlen(path2) : 0;
    uint64_t room = ROOM(sizeof(entry) + path_bytes + path2_bytes + length);
    uint64_t at = atomic_fetch_add(&shared->used, room);
    if (at + room > shared->capacity) {
        static const char full[] = "crash_truth: the log is full\n";
        syscall(SYS_write, 2, full, sizeof full - 1);
        _exit(99);
    }
    entry *e = (entry *)((char *)shared + at);
    atomic_store(&e->room, room / ALIGNMENT * 2);
    e->kind = kind;
    e->pid = getpid();
    e->tid = syscall(SYS_gettid);
    e->inode = inode;
    e->offset = offset;
    e->length = length;
    e->token = token;
    e->result = result;
    e->flags = flags;
    e->path_bytes = path_bytes;
    e->path2_bytes = path2_bytes;
    char *to = (char *)(e + 1);
    if (path_bytes) memcpy(to, path, path_bytes);
    if (path2_bytes) memcpy(to + path_bytes, path2, path2_bytes);
    to += path_bytes + path2_bytes;
    for (int i = 0; i < count && length; i++) {
        uint64_t part = data[i].iov_len < length ? data[i].iov_len : length;
        memcpy(to, data[i].iov_base, part);
        to += part;
        length -= part;
    }
    atomic_fetch_or(&e->room, 1);
    errno = before;
}

/* What a client saw: an acknowledgement is after the syncs that caused it. */
void crash_truth_note(const char *text)
{
    if (shared)
        append(NOTE, 0, 0, 0, 0, 0, text, NULL, NULL, 0, 0);
}

/* ---------------------------------------------------------------- which files */

static int below_root(const char *path)
{
    return root_bytes && !strncmp(path, shared->root, root_bytes)
        && (path[root_bytes] == '/' || !path[root_bytes]);
}

/* Whether fd is a file or a directory below the root; then its inode, path and kind. */
static int tracked(int fd, uint64_t *inode, char *path, int *directory)
{
    struct stat found;
    char link[64];
    int before = errno;
    if (!shared || fd < 0 || fstat(fd, &found) || !(S_ISREG(found.st_mode) || S_ISDIR(found.st_mode))) {
        errno = before;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_BYTES - 1);
    errno = before;
    if (n <= 0)
        return 0;
    path[n] = 0;
    *inode = found.st_ino;
    if (directory)
        *directory = S_ISDIR(found.st_mode);
    return below_root(path);
}

/* The absolute path of (directory, path), or 0 when it is not below the root. */
static int absolute(int directory, const char *path, char *into)
{
    char link[64];
    ssize_t n = 0;
    int before = errno;
    if (!shared || !path || strlen(path) >= PATH_MAX)
        return 0;
    if (*path != '/') {
        if (directory == AT_FDCWD) {
            if (!getcwd(into, PATH_MAX)) return 0;
            n = strlen(into);
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            n = readlink(link, into, PATH_MAX - 1);
            if (n < 0) { errno = before; return 0; }
        }
        into[n++] = '/';
    }
    errno = before;
    if ((size_t)n + strlen(path) >= PATH_BYTES)
        return 0;
    strcpy(into + n, path);
    return below_root(into);
}

static uint64_t inode_of(const char *path)
{
    struct stat found;
    int before = errno;
    uint64_t inode = lstat(path, &found) ? 0 : found.st_ino;
    errno = before;
    return inode;
}

/* ---------------------------------------------------------------- faults */

/* 0: go on. Otherwise the fault that this operation meets; DIE does not return. */
static fault *met(int operation, const char *path)
{
    for (int i = 0; i < FAULTS; i++) {
        fault *f = &shared->faults[i];
        if (!atomic_load(&f->armed) || !(f->operations & operation) || !strstr(path, f->path))
            continue;
        if (atomic_load(&f->skip) > 0 && atomic_fetch_sub(&f->skip, 1) > 0)
            continue;
        if (atomic_load(&f->times) <= 0 || atomic_fetch_sub(&f->times, 1) <= 0)
            continue;
        atomic_fetch_add(&f->fired, 1);
        append(FAULT, operation, f->short_bytes, i, f->error, f->action, path, NULL, NULL, 0, 0);
        if (f->action == DIE)
            syscall(SYS_kill, getpid(), SIGKILL);
        return f;
    }
    return NULL;
}

static int refused(int operation, const char *path)
{
    fault *f = met(operation, path);
    if (!f)
        return 0;
    errno = f->error;
    return 1;
}

/* ---------------------------------------------------------------- start */

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void start(void)
{
#define FIND(name) real_##name = next(#name)
    FIND(open); FIND(openat); FIND(write); FIND(pwrite); FIND(writev); FIND(pwritev); FIND(pwritev2);
    FIND(read); FIND(pread); FIND(readv); FIND(preadv); FIND(preadv2);
    FIND(fsync); FIND(fdatasync); FIND(ftruncate); FIND(truncate); FIND(fallocate); FIND(posix_fallocate);
    FIND(rename); FIND(renameat); FIND(renameat2); FIND(link); FIND(linkat); FIND(unlink); FIND(unlinkat);
    FIND(mkdir); FIND(mkdirat); FIND(rmdir); FIND(symlink); FIND(symlinkat); FIND(mmap);
    FIND(copy_file_range); FIND(sync_file_range); FIND(posix_fadvise);
    const char *log = getenv("CRASH_TRUTH_LOG");
    if (log)
        crash_truth_open(log);
}

/* ---------------------------------------------------------------- opening */

static int opened(int directory, const char *path, int flags, mode_t mode)
{
    char full[PATH_BYTES];
    if (!(flags & (O_CREAT | O_TRUNC)) && (flags & O_TMPFILE) != O_TMPFILE)
        return real_openat(directory, path, flags, mode);
    if (!absolute(directory, path, full))
        return real_openat(directory, path, flags, mode);
    if ((flags & O_TMPFILE) == O_TMPFILE) {
        append(UNSUPPORTED, 0, 0, 0, 0, 0, full, "O_TMPFILE", NULL, 0, 0);
        return real_openat(directory, path, flags, mode);
    }
    lock_names();
    uint64_t before = inode_of(full);
    int fd;
    if (!before && refused(ON_NAME, full)) {
        fd = -1;
    } else {
        fd = real_openat(directory, path, flags, mode);
        if (fd >= 0 && !before)
            append(CREATE, inode_of(full), 0, 0, 0, 0, full, NULL, NULL, 0, 0);
        else if (fd >= 0 && (flags & O_TRUNC))
            append(TRUNCATE, before, 0, 0, 0, 0, full, NULL, NULL, 0, 0);
    }
    int error = errno;
    unlock_names();
    errno = error;
    return fd;
}

static mode_t mode_of(int flags, va_list more)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(more, mode_t) : 0;
}

#define OPEN(name)                                                                                             \
    int name(const char *path, int flags, ...)                                                                 \
    {                                                                                                          \
        va_list more;                                                                                          \
        va_start(more, flags);                                                                                 \
        mode_t mode = mode_of(flags, more);                                                                    \
        va_end(more);                                                                                          \
        return opened(AT_FDCWD, path, flags, mode);                                                            \
    }
#define OPENAT(name)                                                                                           \
    int name(int directory, const char *path, int flags, ...)                                                  \
    {                                                                                                          \
        va_list more;                                                                                          \
        va_start(more, flags);                                                                                 \
        mode_t mode = mode_of(flags, more);                                                                    \
        va_end(more);                                                                                          \
        return opened(directory, path, flags, mode);                                                           \
    }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __openat_2(int directory, const char *path, int flags) { return opened(directory, path, flags, 0); }
int __openat64_2(int directory, const char *path, int flags) { return opened(directory, path, flags, 0); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    char path[PATH_BYTES];
    uint64_t inode;
    if (fd >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED) && tracked(fd, &inode, path, NULL))
        append(MAPPED, inode, offset, 0, 0, 0, path, NULL, NULL, 0, 0);
    if (!real_mmap) real_mmap = next("mmap");
    return real_mmap(address, length, protection, flags, fd, offset);
}
void *mmap64(void *a, size_t n, int p, int f, int d, off_t o) __attribute__((alias("mmap")));

/* ---------------------------------------------------------------- writing */

static void wrote(int fd, uint64_t inode, off_t offset, ssize_t done, const struct iovec *data, int count,
                  int flags)
{
    if (done <= 0)
        return;
    int mode = fcntl(fd, F_GETFL);
    int durable = mode & O_DSYNC || flags & (RWF_DSYNC | RWF_SYNC);  /* O_SYNC holds O_DSYNC */
    append(WRITE, inode, offset, 0, 0, (durable ? DURABLE : 0) | (mode & O_DIRECT ? DIRECT : 0), NULL, NULL,
           data, count, done);
}

/* 0: write all; 1: *data was made shorter; -1: refused, errno says why. */
static int shortened(const char *path, struct iovec *data, int *count)
{
    fault *f = met(ON_WRITE, path);
    if (!f)
        return 0;
    if (f->action != SHORT) {
        errno = f->error;
        return -1;
    }
    size_t left = f->short_bytes;
    for (int i = 0; i < *count; i++) {
        if (data[i].iov_len >= left) {
            data[i].iov_len = left;
            *count = i + 1;
            return 1;
        }
        left -= data[i].iov_len;
    }
    return 1;
}

static ssize_t write_all(int fd, const struct iovec *data, int count, off_t offset, int flags, int at)
{
    char path[PATH_BYTES];
    uint64_t inode;
    if (!tracked(fd, &inode, path, NULL)) {
        if (!at) return count == 1 ? real_write(fd, data->iov_base, data->iov_len) : real_writev(fd, data, count);
        return flags ? real_pwritev2(fd, data, count, offset, flags)
                     : count == 1 ? real_pwrite(fd, data->iov_base, data->iov_len, offset)
                                  : real_pwritev(fd, data, count, offset);
    }
    if (flags & RWF_APPEND || count > 4096)
        append(UNSUPPORTED, inode, 0, 0, 0, 0, path, "RWF_APPEND or a very long vector", NULL, 0, 0);
    struct iovec own[4096];
    int parts = count < 4096 ? count : 4096;
    memcpy(own, data, sizeof(struct iovec) * parts);
    if (shortened(path, own, &parts) < 0)
        return -1;
    ssize_t done;
    if (at)
        done = flags ? real_pwritev2(fd, own, parts, offset, flags) : real_pwritev(fd, own, parts, offset);
    else
        done = real_writev(fd, own, parts);
    int error = errno;
    if (!at && done > 0)
        offset = lseek(fd, 0, SEEK_CUR) - done;
    wrote(fd, inode, offset, done, own, parts, flags);
    errno = error;
    return done;
}

ssize_t write(int fd, const void *data, size_t length)
{
    struct iovec one = { (void *)data, length };
    if (!shared) return real_write ? real_write(fd, data, length) : syscall(SYS_write, fd, data, length);
    return write_all(fd, &one, 1, 0, 0, 0);
}
ssize_t writev(int fd, const struct iovec *data, int count) { return write_all(fd, data, count, 0, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    struct iovec one = { (void *)data, length };
    return write_all(fd, &one, 1, offset, 0, 1);
}
ssize_t pwrite64(int f, const void *d, size_t n, off_t o) __attribute__((alias("pwrite")));
ssize_t pwritev(int fd, const struct iovec *data, int count, off_t offset)
{
    return write_all(fd, data, count, offset, 0, 1);
}
ssize_t pwritev64(int f, const struct iovec *d, int n, off_t o) __attribute__((alias("pwritev")));
ssize_t pwritev2(int fd, const struct iovec *data, int count, off_t offset, int flags)
{
    return write_all(fd, data, count, offset, flags, offset != -1);
}
ssize_t pwritev64v2(int f, const struct iovec *d, int n, off_t o, int w) __attribute__((alias("pwritev2")));

int ftruncate(int fd, off_t length)
{
    char path[PATH_BYTES];
    uint64_t inode;
    int is = tracked(fd, &inode, path, NULL);
    if (is && refused(ON_WRITE, path)) return -1;
    int result = real_ftruncate(fd, length);
    if (is && !result) append(TRUNCATE, inode, length, 0, 0, 0, path, NULL, NULL, 0, 0);
    return result;
}
int ftruncate64(int fd, off_t length) __attribute__((alias("ftruncate")));
int truncate(const char *path, off_t length)
{
    char full[PATH_BYTES];
    int is = absolute(AT_FDCWD, path, full);
    int result = real_truncate(path, length);
    if (is && !result) append(TRUNCATE, inode_of(full), length, 0, 0, 0, full, NULL, NULL, 0, 0);
    return result;
}
int truncate64(const char *path, off_t length) __attribute__((alias("truncate")));
int fallocate(int fd, int mode, off_t offset, off_t length)
{
    char path[PATH_BYTES];
    uint64_t inode;
    int is = tracked(fd, &inode, path, NULL);
    if (is && refused(ON_WRITE, path)) return -1;
    int result = real_fallocate(fd, mode, offset, length);
    if (is && !result) append(ALLOCATE, inode, offset, length, mode, 0, path, NULL, NULL, 0, 0);
    return result;
}
int fallocate64(int f, int m, off_t o, off_t n) __attribute__((alias("fallocate")));
int posix_fallocate(int fd, off_t offset, off_t length)
{
    char path[PATH_BYTES];
    uint64_t inode;
    int is = tracked(fd, &inode, path, NULL);
    int result = real_posix_fallocate(fd, offset, length);
    if (is && !result) append(ALLOCATE, inode, offset, length, 0, 0, path, NULL, NULL, 0, 0);
    return result;
}
int posix_fallocate64(int f, off_t o, off_t n) __attribute__((alias("posix_fallocate")));
ssize_t copy_file_range(int from, off_t *at, int to, off_t *into, size_t length, unsigned flags)
{
    char path[PATH_BYTES];
    uint64_t inode;
    if (tracked(to, &inode, path, NULL))
        append(UNSUPPORTED, inode, 0, 0, 0, 0, path, "copy_file_range", NULL, 0, 0);
    return real_copy_file_range(from, at, to, into, length, flags);
}

/* ---------------------------------------------------------------- reading: only faults */

#define READ(name, arguments, call)                                                                            \
    ssize_t name arguments                                                                                     \
    {                                                                                                          \
        char path[PATH_BYTES];                                                                                 \
        uint64_t inode;                                                                                        \
        if (shared && atomic_load(&shared->reads_fail) && tracked(fd, &inode, path, NULL)                    \
            && refused(ON_READ, path))                                                                         \
            return -1;                                                                                         \
        return real_##call;                                                                                    \
    }
READ(read, (int fd, void *into, size_t length), read(fd, into, length))
READ(pread, (int fd, void *into, size_t length, off_t offset), pread(fd, into, length, offset))
READ(readv, (int fd, const struct iovec *into, int count), readv(fd, into, count))
READ(preadv, (int fd, const struct iovec *into, int count, off_t offset), preadv(fd, into, count, offset))
READ(preadv2, (int fd, const struct iovec *into, int count, off_t offset, int flags),
     preadv2(fd, into, count, offset, flags))
ssize_t pread64(int f, void *d, size_t n, off_t o) __attribute__((alias("pread")));
ssize_t preadv64(int f, const struct iovec *d, int n, off_t o) __attribute__((alias("preadv")));
ssize_t preadv64v2(int f, const struct iovec *d, int n, off_t o, int w) __attribute__((alias("preadv2")));

/* ---------------------------------------------------------------- syncing */

/* As Linux does it: a failed sync is told once to each who has the file open (here: to each process). */
static int failed_before(uint64_t inode)
{
    for (int i = 0; i < ERRORS; i++) {
        uint64_t number = atomic_load(&shared->errors[i].number);
        if (atomic_load(&shared->errors[i].inode) == inode && heard[i] != number) {
            heard[i] = number;
            errno = EIO;
            return 1;
        }
    }
    return 0;
}

static void fails_now(uint64_t inode)
{
    for (int i = 0; i < ERRORS; i++) {
        uint64_t none = 0;
        if (atomic_load(&shared->errors[i].inode) != inode
            && !atomic_compare_exchange_strong(&shared->errors[i].inode, &none, inode))
            continue;
        heard[i] = atomic_fetch_add(&shared->errors[i].number, 1) + 1;
        return;
    }
}

static int synced(int fd, int (*real)(int))
{
    char path[PATH_BYTES];
    uint64_t inode;
    int directory;
    if (!tracked(fd, &inode, path, &directory))
        return real(fd);
    uint64_t token = atomic_fetch_add(&shared->tokens, 1) + 1;
    append(SYNC_BEGIN, inode, 0, token, 0, directory ? IS_DIRECTORY : 0, path, NULL, NULL, 0, 0);
    int result;
    int told = failed_before(inode);
    if (told) {                                                            /* it flushes, and tells of before */
        real(fd);
        result = -1;
        errno = EIO;
    } else if (refused(ON_SYNC, path)) {
        int error = errno;
        result = -1;
        fails_now(inode);
        errno = error;
    } else {
        result = real(fd);
    }
    int error = errno;
    append(SYNC_END, inode, 0, token, result, (directory ? IS_DIRECTORY : 0) | (told ? OF_BEFORE : 0), path, NULL, NULL, 0, 0);
    errno = error;
    return result;
}
int fsync(int fd) { return synced(fd, real_fsync); }
int fdatasync(int fd) { return synced(fd, real_fdatasync); }
int sync_file_range(int fd, off_t offset, off_t length, unsigned flags)
{
    return real_sync_file_range(fd, offset, length, flags);                /* makes nothing durable */
}

int posix_fadvise(int fd, off_t offset, off_t length, int advice)
{
    char path[PATH_BYTES];
    uint64_t inode;
    int result = real_posix_fadvise(fd, offset, length, advice);
    if (!result && advice == POSIX_FADV_DONTNEED && !offset && !length && tracked(fd, &inode, path, NULL))
        append(DROP, inode, 0, 0, 0, 0, path, NULL, NULL, 0, 0);
    return result;
}
int posix_fadvise64(int f, off_t o, off_t n, int a) __attribute__((alias("posix_fadvise")));

/* ---------------------------------------------------------------- names */

static int renamed(int from, const char *old, int to, const char *new, unsigned flags)
{
    char first[PATH_BYTES], second[PATH_BYTES];
    int is = absolute(from, old, first) | absolute(to, new, second);
    if (!is) return real_renameat2(from, old, to, new, flags);
    if (flags) append(UNSUPPORTED, 0, 0, 0, 0, 0, first, "renameat2 with flags", NULL, 0, 0);
    lock_names();
    int result = refused(ON_NAME, second) ? -1 : real_renameat2(from, old, to, new, flags);
    if (!result) append(RENAME, inode_of(second), 0, 0, 0, 0, first, second, NULL, 0, 0);
    int error = errno;
    unlock_names();
    errno = error;
    return result;
}
int rename(const char *old, const char *new) { return renamed(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int from, const char *old, int to, const char *new) { return renamed(from, old, to, new, 0); }
int renameat2(int from, const char *old, int to, const char *new, unsigned flags)
{
    return renamed(from, old, to, new, flags);
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    char first[PATH_BYTES], second[PATH_BYTES];
    int is = absolute(from, old, first) | absolute(to, new, second);
    if (!is) return real_linkat(from, old, to, new, flags);
    lock_names();
    int result = refused(ON_NAME, second) ? -1 : real_linkat(from, old, to, new, flags);
    if (!result) append(LINK, inode_of(second), 0, 0, 0, 0, first, second, NULL, 0, 0);
    int error = errno;
    unlock_names();
    errno = error;
    return result;
}
int link(const char *old, const char *new) { return linkat(AT_FDCWD, old, AT_FDCWD, new, 0); }

int unlinkat(int directory, const char *path, int flags)
{
    char full[PATH_BYTES];
    if (!absolute(directory, path, full)) return real_unlinkat(directory, path, flags);
    lock_names();
    uint64_t inode = inode_of(full);
    int result = real_unlinkat(directory, path, flags);
    if (!result) append(flags & AT_REMOVEDIR ? RMDIR : UNLINK, inode, 0, 0, 0, 0, full, NULL, NULL, 0, 0);
    int error = errno;
    unlock_names();
    errno = error;
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int directory, const char *path, mode_t mode)
{
    char full[PATH_BYTES];
    if (!absolute(directory, path, full)) return real_mkdirat(directory, path, mode);
    lock_names();
    int result = refused(ON_NAME, full) ? -1 : real_mkdirat(directory, path, mode);
    if (!result) append(MKDIR, inode_of(full), 0, 0, 0, 0, full, NULL, NULL, 0, 0);
    int error = errno;
    unlock_names();
    errno = error;
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int symlinkat(const char *target, int directory, const char *path)
{
    char full[PATH_BYTES];
    if (absolute(directory, path, full))
        append(UNSUPPORTED, 0, 0, 0, 0, 0, full, "symlink", NULL, 0, 0);
    return real_symlinkat(target, directory, path);
}
int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }
