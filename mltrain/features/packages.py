"""Maven coordinates of the jars that Spark needs: the one place that names them. Starts no engine."""

DELTA = "io.delta:delta-spark_4.2_2.13:4.4.0"
# The modules of the AWS SDK that hadoop-aws uses: 40 MB, where its default bundle is 640 MB.
S3A = (
    "org.apache.hadoop:hadoop-aws:3.5.0",
    "software.amazon.awssdk:s3:2.35.4",
    "software.amazon.awssdk:s3-transfer-manager:2.35.4",
    "software.amazon.awssdk:sts:2.35.4",
)
EXCLUDES = ("software.amazon.awssdk:bundle",)

EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
CATALOG = "org.apache.spark.sql.delta.catalog.DeltaCatalog"
CONF = {"spark.sql.extensions": EXTENSION, "spark.sql.catalog.spark_catalog": CATALOG}


def packages() -> str:
    """The value of ``spark-submit --packages`` (``spark.jars.packages``)."""
    return ",".join((DELTA, *S3A))


def excludes() -> str:
    """The value of ``spark-submit --exclude-packages`` (``spark.jars.excludes``)."""
    return ",".join(EXCLUDES)


def submit_flags() -> str:
    """The flags that a ``spark-submit`` of a dataset build needs, as one line of shell."""
    return f"--packages {packages()} --exclude-packages {excludes()}"
