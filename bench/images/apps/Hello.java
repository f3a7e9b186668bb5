/** openjdk-hello: what a class costs that says hello, a JVM included. */
public class Hello {
  public static void main(String[] arguments) {
    System.out.printf("Hello from Java %s%n", System.getProperty("java.version"));
  }
}
