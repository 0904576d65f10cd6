// A CUDA driver that has no GPU: it writes down what is loaded and launched, one line each, to $FAKE_CUDA_LOG.
//
// FAKE_CUDA_ARCH is the compute capability it claims, such as 87, FAKE_CUDA_SHARED the bytes of shared memory for one
// block, FAKE_CUDA_REFUSES which code it does not take (cubin or ptx). A kernel's arguments are known only to whoever
// compiled it: FAKE_CUDA_ARGUMENTS says them, as in `attend=ppi,weigh=pi` for pointers and integers.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;

static int modules;

static FILE* open_log(void)
{
    FILE* const log = fopen(getenv("FAKE_CUDA_LOG"), "a");
    if (!log)
    {
        abort();
    }
    return log;
}

static int number(char const* name, int otherwise)
{
    char const* const text = getenv(name);
    return text ? atoi(text) : otherwise;
}

CUresult cuCtxGetCurrent(void** context)
{
    *context = (void*) 1;
    return 0;
}

CUresult cuCtxGetDevice(int* device)
{
    *device = 0;
    return 0;
}

CUresult cuDeviceGetAttribute(int* value, int attribute, int device)
{
    (void) device;
    int const arch = number("FAKE_CUDA_ARCH", 87);
    *value = attribute == 75 ? arch / 10 : attribute == 76 ? arch % 10 : number("FAKE_CUDA_SHARED", 166912);
    return 0;
}

CUresult cuGetErrorName(CUresult result, char const** name)
{
    *name = result == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR_UNKNOWN";
    return 0;
}

CUresult cuModuleLoadData(void** module, void const* image)
{
    char const* const kind = memcmp(image, "\x7f" "ELF", 4) ? "ptx" : "cubin";
    char const* const refuses = getenv("FAKE_CUDA_REFUSES");
    if (refuses && strstr(refuses, kind))
    {
        return 209;
    }
    FILE* const log = open_log();
    char const* const target = strcmp(kind, "ptx") ? 0 : strstr(image, ".target ");
    fprintf(log, "load %s %.*s\n", kind, target ? (int) strcspn(target + 8, "\n") : 1, target ? target + 8 : "-");
    fclose(log);
    *module = (void*) (intptr_t) ++modules;
    return 0;
}

CUresult cuModuleUnload(void* module)
{
    (void) module;
    FILE* const log = open_log();
    fprintf(log, "unload\n");
    fclose(log);
    return 0;
}

CUresult cuModuleGetFunction(void** function, void* module, char const* name)
{
    (void) module;
    *function = (void*) name;  // the table's own text, which outlives the module
    return 0;
}

CUresult cuFuncSetAttribute(void* function, int attribute, int value)
{
    (void) function;
    (void) attribute;
    return value > number("FAKE_CUDA_SHARED", 166912);
}

CUresult cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
    unsigned shared, void* stream, void** arguments, void** extra)
{
    (void) stream;
    (void) extra;
    char wanted[128];
    snprintf(wanted, sizeof(wanted), "%s=", (char const*) function);
    char const* kinds = strstr(getenv("FAKE_CUDA_ARGUMENTS"), wanted);
    FILE* const log = open_log();
    fprintf(log, "launch %s %u,%u,%u %u,%u,%u %u", (char const*) function, gx, gy, gz, bx, by, bz, shared);
    for (kinds = kinds ? kinds + strlen(wanted) : ""; *kinds == 'p' || *kinds == 'i'; ++kinds, ++arguments)
    {
        if (*kinds == 'p')
        {
            fprintf(log, " %p", *(void**) *arguments);
        }
        else
        {
            fprintf(log, " %d", *(int32_t*) *arguments);
        }
    }
    fprintf(log, "\n");
    fclose(log);
    return 0;
}
