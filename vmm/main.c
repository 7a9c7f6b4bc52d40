/* The program's entry: finds the command and runs it. Owned by the main thread. */
#include <stdio.h>

int main(void)
{
    puts("ferry " FERRY_VERSION);
    return 0;
}
