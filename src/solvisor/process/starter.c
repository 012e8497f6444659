/* Start one program, in one call and without the interpreter: born in its cgroup, its logs open, its pidfd at hand.
 *
 * The child shares our memory and we wait (CLONE_VM | CLONE_VFORK) until it has become the program or given up; so it
 * calls nothing that takes a lock or memory, and writes only to its own stack and to `begun`, `failed_step` and
 * `failed_errno`. It runs on a stack of its own: it must not return into a frame that its parent goes on to use. No
 * signal is handled meanwhile: all are blocked here, from the first opening on, so that none interrupts one on a slow
 * disk; and in the child all handlers are cleared (CLONE_CLEAR_SIGHAND).
 *
 * A library without Python.h, called by native.py through ctypes; it holds no state. What is not here (another
 * system or processor, a kernel or a seccomp profile without clone3) is reported as ENOSYS or EPERM by STEP_CLONE.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* linux/sched.h, linux/close_range.h; younger than some C libraries */
#define VM_SHARED 0x00000100ULL
#define PARENT_WAITS 0x00004000ULL
#define GIVE_PIDFD 0x00001000ULL
#define CLEAR_HANDLERS 0x100000000ULL
#define INTO_CGROUP 0x200000000ULL
#define NR_CLONE3 435
#define NR_CLOSE_RANGE 436

enum step { STEP_NONE, STEP_STDOUT, STEP_STDERR, STEP_CGROUP, STEP_PREPARE, STEP_CLONE, STEP_FOLDER, STEP_EXEC };

struct clone_arguments { /* struct clone_args, its 88 bytes of Linux 5.7 */
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

struct processors { /* as many as the kernel can have */
    unsigned long mask[8192 / (8 * sizeof(unsigned long))];
    long size; /* in bytes; not positive: not known */
};

struct order {
    char **programs, **argv, **env;
    const char *cwd;
    int files[3];
    sigset_t mask;
    pid_t waiting; /* the thread that starts it, and the processors on which that one is to run */
    struct processors own;
    volatile int64_t begun; /* on the clock of boot, in nanoseconds: when the child was there; 0: it never was */
    volatile int failed_step, failed_errno;
};

/* What native.py gets to know; the same structure stands there. `start` is in ticks since boot, -1 if not known. */
struct answer {
    int32_t step, error, pid, pidfd;
    int64_t start;
};

int32_t solvisor_starter_version(void) { return 3; }

static int64_t since_boot(void)
{
    struct timespec now;

    return clock_gettime(CLOCK_BOOTTIME, &now) < 0 ? -1 : now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Where they are not known, or are taken from us meanwhile, it goes on where it is. */
static void stay_on(pid_t thread, const struct processors *processors)
{
    if (processors->size > 0)
        syscall(SYS_sched_setaffinity, thread, processors->size, processors->mask);
}

static _Noreturn void give_up(struct order *order, int step)
{
    order->failed_errno = errno;
    order->failed_step = step;
    _exit(127);
}

/* The child. */
static _Noreturn void become_program(void *argument)
{
    struct order *order = argument;
    static const struct sigaction by_default = {.sa_handler = SIG_DFL};
    int refusal = 0;

    stay_on(order->waiting, &order->own);
    order->begun = since_boot();
    for (int at = 0; at < 3; at++)
        if (dup2(order->files[at], at) < 0)
            give_up(order, STEP_PREPARE);
    if (setsid() < 0 || syscall(NR_CLOSE_RANGE, 3U, UINT_MAX, 0U) < 0)
        give_up(order, STEP_CLONE);
    if (chdir(order->cwd) < 0)
        give_up(order, STEP_FOLDER);
    /* The interpreter ignores these two, and what is ignored would stay so in the program. */
    sigaction(SIGPIPE, &by_default, NULL);
    sigaction(SIGXFSZ, &by_default, NULL);
    sigprocmask(SIG_SETMASK, &order->mask, NULL);
    for (char **program = order->programs; *program != NULL; program++) {
        execve(*program, order->argv, order->env);
        if (errno != ENOENT && errno != ENOTDIR && refusal == 0)
            refusal = errno;
    }
    errno = refusal != 0 ? refusal : errno;
    give_up(order, STEP_EXEC);
}

/* clone3, and `run(argument)` in the child on its new stack. Returns as the kernel does. */
static long clone_and_run(struct clone_arguments *arguments, void (*run)(void *), void *argument)
{
#if defined(__linux__) && defined(__x86_64__) && !defined(__ILP32__)
    register void (*fn)(void *) __asm__("r8") = run;
    register void *of __asm__("r9") = argument;
    long result = NR_CLONE3;

    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t" /* the outermost frame */
                     "mov %%r9, %%rdi\n\t"
                     "call *%%r8\n\t"
                     "hlt\n"
                     "1:"
                     : "+a"(result)
                     : "D"(arguments), "S"(sizeof *arguments), "r"(fn), "r"(of)
                     : "rcx", "r11", "memory", "cc");
    return result;
#elif defined(__linux__) && defined(__aarch64__)
    register void *result __asm__("x0") = arguments;
    register long size __asm__("x1") = sizeof *arguments;
    register long number __asm__("x8") = NR_CLONE3;
    register void (*fn)(void *) __asm__("x9") = run;
    register void *of __asm__("x10") = argument;

    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, #0\n\t" /* the outermost frame */
                     "mov x0, x10\n\t"
                     "blr x9\n\t"
                     "brk #0\n"
                     "1:"
                     : "+r"(result)
                     : "r"(size), "r"(number), "r"(fn), "r"(of)
                     : "memory", "cc");
    return (long)result;
#else
    (void)arguments, (void)run, (void)argument;
    return -ENOSYS;
#endif
}

/* The child leaves all of its descriptors but 0, 1 and 2, which may be free here. */
static int above_two(int fd)
{
    int moved = fd;

    if (fd >= 0 && fd <= 2) {
        moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        close(fd);
    }
    return moved;
}

static int open_log(const char *path)
{
    return above_two(open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0640));
}

/* `count` texts that follow each other, each with its NUL, as execve wants them; what comes after them. */
static const char *listed(char **list, const char *texts, int count)
{
    for (int at = 0; at < count; at++, texts += strlen(texts) + 1)
        *list++ = (char *)texts;
    *list = NULL;
    return texts;
}

/* What stands in the 22nd field of /proc/PID/stat of a process that was made between these two times, without the look
 * there, which costs more than all else here but the start itself: the kernel notes a start by this clock. Rarely a tick
 * passes in between; near its edge another way to round must not matter. */
static int64_t tick_of(int64_t before, int64_t after)
{
    const int64_t tick = 1000000000 / sysconf(_SC_CLK_TCK), slack = 1000;

    return before >= 0 && (before - slack) / tick == (after + slack) / tick ? before / tick : -1;
}

static void clone_program(struct order *order, int cgroup, struct answer *answer)
{
    _Alignas(16) char stack[32768];
    int pidfd = -1;
    struct clone_arguments arguments = {
        .flags = VM_SHARED | PARENT_WAITS | GIVE_PIDFD | CLEAR_HANDLERS | (cgroup >= 0 ? INTO_CGROUP : 0),
        .pidfd = (uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .stack = (uintptr_t)stack,
        .stack_size = sizeof stack,
        .cgroup = cgroup >= 0 ? (uint64_t)cgroup : 0,
    };
    int64_t before = since_boot();
    long pid = clone_and_run(&arguments, become_program, order);

    if (order->begun == 0)
        stay_on(0, &order->own);
    if (pid < 0) {
        answer->step = STEP_CLONE;
        answer->error = (int32_t)-pid;
    } else if (order->failed_step != STEP_NONE) {
        answer->step = order->failed_step;
        answer->error = order->failed_errno;
        while (waitpid((pid_t)pid, NULL, 0) < 0 && errno == EINTR)
            ;
        close(pidfd);
    } else {
        answer->pid = (int32_t)pid;
        answer->pidfd = pidfd;
        answer->start = tick_of(before, order->begun);
    }
}

/* `texts` follow each other: the programs to try, the arguments, the environment, the working folder, the two logs (made
 * if need be) and, with `in_cgroup`, a folder of version 2. `cpus` is the mask of the processors it may use. */
void solvisor_start(const char *texts, int program_count, int argument_count, int env_count, int in_cgroup,
                    const void *cpus, int cpus_size, struct answer *answer)
{
    struct order order = {.files = {-1, -1, -1}, .waiting = (pid_t)syscall(SYS_gettid)};
    int folder = -1;
    sigset_t all;

    *answer = (struct answer){.step = STEP_NONE, .start = -1};
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &order.mask);
    order.programs = malloc(((size_t)program_count + (size_t)argument_count + (size_t)env_count + 3) * sizeof(char *));
    if (order.programs == NULL) {
        answer->step = STEP_PREPARE;
    } else {
        order.argv = order.programs + program_count + 1;
        order.env = order.argv + argument_count + 1;
        texts = listed(order.programs, texts, program_count);
        texts = listed(order.argv, texts, argument_count);
        order.cwd = listed(order.env, texts, env_count);
        const char *out = order.cwd + strlen(order.cwd) + 1;
        const char *err = out + strlen(out) + 1;
        const char *cgroup = err + strlen(err) + 1;
        if ((order.files[1] = open_log(out)) < 0)
            answer->step = STEP_STDOUT;
        else if ((order.files[2] = open_log(err)) < 0)
            answer->step = STEP_STDERR;
        else if ((order.files[0] = above_two(open("/dev/null", O_RDONLY | O_CLOEXEC))) < 0)
            answer->step = STEP_PREPARE;
        else if (in_cgroup && (folder = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
            answer->step = STEP_CGROUP;
    }
    answer->error = errno;
    if (answer->step == STEP_NONE) {
        /* The child begins where it may run, not where we do: all it does until it is the program would take our
         * processor's time, and so would its move from there. We wait meanwhile, and it sends us back. */
        order.own.size = syscall(SYS_sched_getaffinity, 0, sizeof order.own.mask, order.own.mask);
        if (order.own.size > 0)
            syscall(SYS_sched_setaffinity, 0, (size_t)cpus_size, cpus);
        clone_program(&order, folder, answer);
    }
    for (int at = 0; at < 3; at++)
        if (order.files[at] >= 0)
            close(order.files[at]);
    if (folder >= 0)
        close(folder);
    free(order.programs);
    sigprocmask(SIG_SETMASK, &order.mask, NULL);
}
