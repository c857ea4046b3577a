/* Known ways out of a container, tried by root inside of one. Each prints its name and `held` or `OUT` with what it
 * could do. Argument 1: a file of the host, as its absolute path. Arguments 2 and 3: the device of the host's disk. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const char *marker;

static void tell(const char *name, int out) {
    if (out)
        printf("%s OUT\n", name);
    else
        printf("%s held (%s)\n", name, strerror(errno));
    fflush(stdout);
}

/* A kernel interface that must not be opened for writing. Nothing is written: it would be the host's. */
static void writable(const char *name, const char *path) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    tell(name, fd >= 0);
    if (fd >= 0)
        close(fd);
}

static void readable(const char *name, const char *path) {
    char byte;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    tell(name, fd >= 0 && read(fd, &byte, 1) == 1);
    if (fd >= 0)
        close(fd);
}

static void node(const char *name, mode_t kind, dev_t device) {
    unlink("/node");
    errno = 0;
    int made = mknod("/node", kind | 0600, device);
    if (made == 0)
        readable(name, "/node");
    else
        tell(name, 0);
    unlink("/node");
}

static void release_agents(void) {
    glob_t found;
    int out = 0;
    errno = ENOENT;
    if (glob("/sys/fs/cgroup/*/release_agent", 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++) {
            int fd = open(found.gl_pathv[i], O_WRONLY | O_CLOEXEC);
            out |= fd >= 0;
        }
    tell("release-agent", out);
    out = 0;
    if (glob("/sys/fs/cgroup/*", 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++) {
            char path[4096];
            snprintf(path, sizeof path, "%s/escape", found.gl_pathv[i]);
            out |= mkdir(path, 0700) == 0;
        }
    tell("cgroup-of-its-own", out);
}

/* open_by_handle_at on a file of the same file system as a bind mount of the host's. */
static void handles(void) {
    union {
        struct file_handle handle;
        char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } file;
    int mount_id;
    file.handle.handle_bytes = MAX_HANDLE_SZ;
    int known = name_to_handle_at(AT_FDCWD, "/escape", &file.handle, &mount_id, 0);
    if (known != 0) {
        file.handle.handle_bytes = 8;
        file.handle.handle_type = 1;
        memset(file.handle.f_handle, 2, 8);
    }
    int at = open("/escape", O_RDONLY | O_CLOEXEC);
    tell("open-by-handle", open_by_handle_at(at, &file.handle, O_RDONLY) >= 0);
}

static void out_of_chroot(void) {
    mkdir("/jail", 0700);
    int here = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (chroot("/jail") == 0 && fchdir(here) == 0) {
        for (int i = 0; i < 64; i++)
            if (chdir("..") != 0)
                break;
        if (chroot(".") != 0)
            exit(3);
    }
    tell("chroot", access(marker, F_OK) == 0);
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    marker = argv[1];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);

    writable("core-pattern", "/proc/sys/kernel/core_pattern");
    writable("modprobe", "/proc/sys/kernel/modprobe");
    writable("binfmt-misc", "/proc/sys/fs/binfmt_misc/register");
    writable("sysrq", "/proc/sysrq-trigger");
    writable("uevent-helper", "/sys/kernel/uevent_helper");
    writable("irq", "/proc/irq/0/smp_affinity");
    readable("kcore", "/proc/kcore");
    readable("kmsg", "/dev/kmsg");
    readable("mem", "/dev/mem");
    release_agents();
    node("disk", S_IFBLK, makedev(atoi(argv[2]), atoi(argv[3])));
    node("mem-node", S_IFCHR, makedev(1, 1));
    node("kmsg-node", S_IFCHR, makedev(1, 11));
    handles();

    tell("remount-proc-sys", mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL) == 0);
    tell("unmount-mask", umount2("/proc/kcore", MNT_DETACH) == 0);
    tell("mount-proc", mount("proc", "/tmp", "proc", 0, NULL) == 0);
    tell("mount-cgroup", mount("cgroup", "/tmp", "cgroup", 0, "memory") == 0);
    tell("mount-cgroup2", mount("none", "/tmp", "cgroup2", 0, NULL) == 0);
    tell("mount-disk", mount("/node", "/tmp", "ext4", 0, NULL) == 0);
    tell("fsopen", syscall(SYS_fsopen, "proc", 0) >= 0);
    tell("open-tree", syscall(SYS_open_tree, AT_FDCWD, "/", 1) >= 0);
    tell("unshare-user", unshare(CLONE_NEWUSER) == 0);
    tell("unshare-mount", unshare(CLONE_NEWNS) == 0);
    int own = open("/proc/1/ns/mnt", O_RDONLY | O_CLOEXEC);
    tell("setns", setns(own, 0) == 0);

    tell("keyctl", syscall(SYS_keyctl, 0, -3, 1) >= 0);
    tell("add-key", syscall(SYS_add_key, "user", "x", "y", 1, -3) >= 0);
    tell("bpf", syscall(SYS_bpf, 0, NULL, 0) >= 0 || (errno != EPERM && errno != ENOSYS));
    tell("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC) >= 0);
    tell("perf-event-open", syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0) >= 0 || errno == EFAULT);
    tell("kexec-load", syscall(SYS_kexec_load, 0, 0, NULL, 0) >= 0);
    tell("init-module", syscall(SYS_init_module, NULL, 0, "") >= 0 || (errno != EPERM && errno != ENOSYS));
    tell("io-uring", syscall(SYS_io_uring_setup, 1, NULL) >= 0 || errno == EFAULT);
    tell("settimeofday", clock_settime(CLOCK_REALTIME, &now) == 0);
    tell("sethostname", sethostname("escaped", 7) == 0);
    tell("swapon", syscall(SYS_swapon, "/node", 0) == 0);
    tell("vsock", socket(40, SOCK_STREAM, 0) >= 0);
    tell("pivot-root", syscall(SYS_pivot_root, "/tmp", "/tmp") == 0);
#ifdef SYS_iopl
    tell("iopl", syscall(SYS_iopl, 3) == 0);
#endif
    out_of_chroot();
    printf("tried\n");
    return 0;
}
