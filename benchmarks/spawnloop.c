/* The floor: COUNT no-op processes, WIDTH at a time, by posix_spawn and wait. Prints the seconds it took. */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int count = atoi(argv[1]), width = atoi(argv[2]), live = 0;
    char *args[] = {argv[3], NULL};
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int started = 0; started < count || live > 0;) {
        if (started < count && live < width) {
            pid_t pid;
            if (posix_spawn(&pid, argv[3], NULL, NULL, args, environ) != 0) return 1;
            started++, live++;
        } else {
            if (wait(NULL) < 0) return 1;
            live--;
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%.6f\n", (b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) / 1e9);
    return 0;
}
